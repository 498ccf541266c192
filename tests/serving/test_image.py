"""The image, built by buildah from an unchanged context: started, asked by `tritonclient[http]`, tried, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.commands import tritonserver
from tests import models
from tests.kinds.run import run_kind
from tests.serving.containers import context

BASE = Path(__file__).parent.parent.parent / ".containers" / "base.tar"
BASE_NAME = "docker.io/library/python:3.12-slim-bookworm"
MOUNTED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "REQUESTS_CA_BUNDLE")
BUILD = (
    *("--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--layers"),
    *("-t", "served"),
)


class Buildah:
    """buildah with a store of its own. The machine's certificates and pip's settings are mounted, never copied in."""

    def __init__(self, folder: Path) -> None:
        place = [f"--root={folder / 'store'}", f"--runroot={folder / 'run'}"]
        self.command = ["buildah", *place, f"--storage-driver={os.environ.get('MODELBUILD_STORAGE', 'overlay')}"]
        files = [Path(f) for f in ("/etc/pip.conf", Path.home() / ".config/pip/pip.conf")]
        files += [Path(os.environ[name]) for name in MOUNTED if name in os.environ]
        self.mounts = [word for f in dict.fromkeys(files) if f.exists() for word in ("-v", f"{f}:{f}:ro")]

    def __call__(self, *arguments: object) -> str:
        ran = subprocess.run(
            [*self.command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=600
        )
        assert ran.returncode == 0, f"{arguments}: {ran.stdout[-2000:]}{ran.stderr[-3000:]}"
        return ran.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    if not shutil.which("buildah") or not BASE.is_file() or os.getuid() != 0:
        pytest.skip("no buildah, or no base image: `bash tests/serving/base_image.sh` makes it, as root")
    folder = tmp_path_factory.mktemp("buildah")
    run = Buildah(folder)
    base = run("from", "scratch")
    run("add", "-q", base, BASE, "/")
    run("commit", "-q", base, BASE_NAME)
    run("rm", base)
    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, buildah: Buildah) -> Artifact:
    """A hand-made encoder with external weights, whose files the image's user must be able to read."""
    folder = tmp_path_factory.mktemp("image")
    models.write_tokenizer(folder / "model")
    models.write_onnx(folder / "model" / "encoder.onnx", external=True)
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    graph = run_kind("onnx", folder, {"task": "feature-extraction"}, sources={"path": folder / "model"})
    for path in graph.path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return context(folder / "context", graph, name="embed", pooling="mean", max_length=16)


def test_an_unchanged_context_builds_and_answers(buildah: Buildah, made: Artifact, tmp_path: Path) -> None:
    buildah("bud", *BUILD, *buildah.mounts, made.path)
    told: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", "served"))["Docker"]["config"]
    port = _free_port()
    container = buildah("from", "--pull-never", "served")
    address = ["--env", f"MODELSERVER_PORT={port}", "--env", "MODELSERVER_HOST=127.0.0.1"]
    running = ["run", "--isolation", "chroot", *address]
    with (tmp_path / "log").open("w") as log:
        # buildah runs no CMD of its own: the image's is given.
        server = subprocess.Popen(
            [*buildah.command, *running, container, "--", *told["Cmd"]],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 60
        while not tritonserver.ready(port):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
        answer = _ask(port)
        health = buildah(*running, container, "--", *told["Healthcheck"]["Test"][1:])
        user = buildah(*running, container, "--", "id", "-u")
        check = buildah(*running, container, "--", "python", "-m", "modelserver.container_serving.check")
    finally:
        _stop(server)

    assert told["User"] == "10001:10001"
    assert told["Labels"]["io.modelbuild.artifact.key"] == "0123456789abcdef" * 2
    assert told["Labels"]["org.opencontainers.image.base.name"] == BASE_NAME
    assert len(answer) == 2
    assert np.isfinite(answer).all()
    assert health == ""
    assert user == "10001"
    assert "FAILED" not in check
    assert "is answered" in check
    log_lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any(line["message"] == "serving" for line in log_lines)


def _ask(port: int) -> Any:
    from tritonclient import http

    given = http.InferInput("text", [2, 1], "BYTES")
    given.set_data_from_numpy(np.array([["some text"], ["another one"]], dtype=object))
    return http.InferenceServerClient(f"127.0.0.1:{port}").infer("embed", [given]).as_numpy("embedding")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server in the container, by its process group, which is ours alone."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_same_context_gives_the_same_image(buildah: Buildah, made: Artifact) -> None:
    """Without a cache of layers, and with every time stamp set, as `SOURCE_DATE_EPOCH` sets them.

    buildah notes ids of its own working containers in the history's comments; they are no part of what runs.
    """
    build = ["bud", "--quiet", "--no-cache", "--timestamp", "0", *BUILD, *buildah.mounts, made.path]
    images = [json.loads(buildah("inspect", "--type", "image", buildah(*build)))["OCIv1"] for _ in range(2)]
    for image in images:
        for entry in image["history"]:
            entry.pop("comment", None)

    first, second = images

    assert len(first["rootfs"]["diff_ids"]) == 4
    assert first == second
