"""The files of a container's context beside the model: Dockerfile, requirements, the server's program, sums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from modelbuild.errors import problem
from modelbuild.lib import container_serving, triton_serving
from modelbuild.lib.container_serving import (
    accounts,
    app,
    batches,
    check,
    generate,
    generating,
    health,
    logs,
    main,
    measures,
    protocol,
    served,
    sessions,
    settings,
)
from modelbuild.lib.triton_repository import GENERATES, TEXT_ANSWERS
from modelbuild.lib.triton_serving import strings, text_answers

MODEL, SERVER, PACKAGE, SUMS = "model", "server", "modelserver", "SHA256SUMS"
OWN = (
    *(container_serving, accounts, app, batches, check, generate, generating, health, logs, main, measures, protocol),
    *(served, sessions, settings),
)
SHARED = (triton_serving, strings, text_answers, *TEXT_ANSWERS, *GENERATES)
FLAVOURS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
BASES = {
    "cpu": "docker.io/library/python:3.12-slim-bookworm",
    "gpu": "docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04",
}
"""Python; and CUDA 13 with cuDNN 9, for which ONNX Runtime's GPU package is made, on an Ubuntu with Python 3.12."""
TRITON = "nvcr.io/nvidia/tritonserver"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
APT = """\
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install -y --no-install-recommends {packages} \\
    && rm -rf /var/lib/apt/lists/*
"""
SERVING = """\
# Serves {name} by the Open Inference Protocol v2. Written by modelbuild.
ARG BASE_IMAGE={base}

FROM ${{BASE_IMAGE}} AS packages
{apt_packages}RUN python3 -m venv --without-pip /opt/venv
COPY requirements.txt /tmp/requirements.txt
# Every package is listed, with those it needs; `--no-deps` leaves out what they would only draw in.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \\
    python3 -m pip --python /opt/venv/bin/python install --no-deps --no-compile -r /tmp/requirements.txt

FROM ${{BASE_IMAGE}}
ARG BASE_IMAGE
{apt_server}ENV PATH=/opt/venv/bin:$PATH \\
    PYTHONPATH=/app/server \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    ORT_DISABLE_TELEMETRY=1 \\
    MODEL_FOLDER=/app/model \\
    MODELSERVER_PORT={port}
COPY --from=packages /opt/venv /opt/venv
# The model in a layer of its own, below the program: a new program does not send it again.
COPY --chmod=0755 model /app/model
COPY --chmod=0755 server /app/server
WORKDIR /app
USER 10001:10001
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \\
    CMD ["python", "-m", "modelserver.container_serving.health"]
{labels}CMD ["python", "-m", "modelserver"]
"""
TRITON_SERVING = """\
# Serves {name} on Triton. Written by modelbuild; the same inputs give the same bytes.
ARG BASE_IMAGE={base}

FROM ${{BASE_IMAGE}}
ARG BASE_IMAGE
{install}ENV ORT_DISABLE_TELEMETRY=1 \\
    PYTHONDONTWRITEBYTECODE=1
COPY --chmod=0755 model /models
USER 1000:1000
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \\
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=3)"]
{labels}CMD {command}
"""
INSTALL = """\
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m pip install --no-cache-dir --no-compile -r /tmp/requirements.txt
"""


def write_requirements(folder: Path, packages: Iterable[str], extra: str, *, gpu: bool) -> None:
    """Write `requirements.txt`: every package at the version that is installed here."""
    lines = [f"{_named(p, gpu)}=={_version(p, extra)}\n" for p in sorted(packages)]
    (folder / "requirements.txt").write_text("".join(lines))


def _named(package: str, gpu: bool) -> str:
    return "onnxruntime-gpu" if gpu and package == "onnxruntime" else package


def _version(package: str, extra: str) -> str:
    for name in FLAVOURS.get(package, (package,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    hint = f"pip install 'modelbuild[{extra}]'"
    raise problem(f"the package `{package}` is not installed, so its version cannot be pinned", hint=hint)


def write_program(folder: Path) -> None:
    """Write the package `modelserver`: ours as it is, and what it shares with Triton's programs."""
    package = folder / SERVER / PACKAGE
    for name, modules in (("container_serving", OWN), ("triton_serving", SHARED)):
        (package / name).mkdir(parents=True)
        for module in modules:
            source = _source(module)
            (package / name / source.name).write_bytes(source.read_bytes())
    (package / "__init__.py").write_text('"""A server of models by the Open Inference Protocol v2."""\n')
    lines = [
        '"""Starts the server: see `container_serving.main`."""',
        "",
        "import sys",
        "",
        "from .container_serving.main import main",
        "",
        "sys.exit(main())",
    ]
    (package / "__main__.py").write_text("".join(f"{line}\n" for line in lines))


def _source(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n")


def write_sums(folder: Path) -> str:
    """Write the SHA-256 of every file of `model/` for `sha256sum -c`; the SHA-256 of that list."""
    lines = []
    for path in sorted(p for p in (folder / MODEL).rglob("*") if p.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    text = "".join(lines).encode()
    (folder / SUMS).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def labels(title: str, sha256: str, stage: Mapping[str, Any] | None, more: Mapping[str, str]) -> dict[str, str]:
    """The image's labels. `stage` is the history of the artifact that is served."""
    found = {
        "org.opencontainers.image.title": title,
        "org.opencontainers.image.base.name": "${BASE_IMAGE}",
        "io.modelbuild.model.sha256": sha256,
    }
    if stage:
        found["org.opencontainers.image.version"] = stage["key"]
        found["io.modelbuild.artifact.key"] = stage["key"]
        found["io.modelbuild.artifact.content"] = stage["output"]
    return {**found, **more}


def _label(given: Mapping[str, str]) -> str:
    lines = []
    for name, value in sorted(given.items()):
        text = (
            value if value == "${BASE_IMAGE}" else value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        )
        lines.append(f'{name}="{text}"')
    return "LABEL " + " \\\n    ".join(lines) + "\n"


def write_dockerfile(folder: Path, name: str, base: str, port: int, given: Mapping[str, str], *, gpu: bool) -> None:
    """The Dockerfile of our own server, and what of the folder is sent to its build."""
    text = SERVING.format(
        name=name,
        base=base,
        port=port,
        labels=_label(given),
        apt_packages=APT.format(packages="python3 python3-pip python3-venv") if gpu else "",
        apt_server=APT.format(packages="python3") if gpu else "",
    )
    (folder / "Dockerfile").write_text(text)
    _write_ignored(folder, ("requirements.txt", MODEL, SERVER))


def write_triton_dockerfile(
    folder: Path, name: str, base: str, given: Mapping[str, str], command: Sequence[str], *, requirements: bool
) -> None:
    """The Dockerfile around a Triton repository."""
    text = TRITON_SERVING.format(
        name=name,
        base=base,
        install=INSTALL if requirements else "",
        labels=_label(given),
        command=msgspec.json.format(msgspec.json.encode(list(command)), indent=0).decode(),
    )
    (folder / "Dockerfile").write_text(text)
    _write_ignored(folder, (*(("requirements.txt",) if requirements else ()), MODEL))


def _write_ignored(folder: Path, sent: Iterable[str]) -> None:
    (folder / ".dockerignore").write_text("".join(f"{line}\n" for line in ("*", *(f"!{s}" for s in sent))))
