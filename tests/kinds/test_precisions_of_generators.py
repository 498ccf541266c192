"""int8 and fp16 of models that generate: a decoder with its cache, and an encoder with its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import onnx_files, sessions
from tests import models
from tests.kinds import greedy
from tests.kinds.run import Heard, run_kind

pytestmark = pytest.mark.torch
TASKS = {"gpt2": "text-generation", "llama": "text-generation", "t5": "text2text-generation"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Tiny seeded models, exported."""
    found = {}
    for name, task in TASKS.items():
        folder = tmp_path_factory.mktemp(name)
        models.write_model(folder / "model", name, task=task)
        checkpoint = run_kind("checkpoint", folder / "c", {}, sources={"path": folder / "model"})
        found[name] = run_kind("onnx", folder / "onnx", {"task": task}, inputs={"from": checkpoint})
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A dataset of token ids of several lengths."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    lengths = random.integers(3, 17, 24)
    mask = (np.arange(16) < lengths[:, None]).astype("int64")
    ids = random.integers(5, models.VOCAB_SIZE, (24, 16)) * mask
    np.savez(folder / "ids.npz", input_ids=ids, attention_mask=mask)
    return run_kind("dataset", folder / "made", {}, sources={"path": folder / "ids.npz"})


def prompts(*, left: bool) -> dict[str, Any]:
    random = np.random.default_rng(1)
    lengths = np.array([8, 5, 3])
    mask = (np.arange(8) < lengths[:, None]).astype("int64")
    mask = mask[:, ::-1].copy() if left else mask
    return {"input_ids": random.integers(5, models.VOCAB_SIZE, (3, 8)) * mask, "attention_mask": mask}


def refusal(kind: str, folder: Path, source: Artifact, **values: Any) -> Problem:
    inputs = {"from": source, **{n: values.pop(n) for n in ("calibration",) if n in values}}
    with pytest.raises(ProblemError) as caught:
        run_kind(kind, folder, values, inputs=inputs)
    (found,) = caught.value.problems
    return found


def operators(built: Artifact, file: str) -> dict[str, int]:
    return onnx_files.operators(onnx_files.load(built.path / file))


@pytest.mark.parametrize("name", TASKS)
def test_int8_without_data(tmp_path: Path, made: dict[str, Artifact], name: str) -> None:
    heard = Heard()
    built = run_kind("int8", tmp_path / "q", {}, inputs={"from": made[name]}, heard=heard)

    assert list(built.descriptor.components) == list(made[name].descriptor.components)
    for graph in built.descriptor.components.values():
        assert (
            operators(built, graph.file).get("MatMulInteger", 0)
            + operators(built, graph.file).get("DynamicQuantizeLinear", 0)
            > 1
        )
    assert built.descriptor.metrics["cosine"] > 0.98
    feeds = prompts(left=name != "t5")
    same = greedy.generate(built, feeds, 1) == greedy.generate(made[name], feeds, 1)
    assert same.mean() > 0.6, "most of the next tokens are the same"
    assert len(heard.logs) == len(built.descriptor.components) + 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_int8_calibrated_on_texts_that_begin(
    tmp_path: Path, made: dict[str, Artifact], texts: Artifact, name: str
) -> None:
    built = run_kind("int8", tmp_path / "q", {}, inputs={"from": made[name], "calibration": texts})

    assert operators(built, onnx_files.MODEL)["QuantizeLinear"] > 2
    assert built.descriptor.metrics["cosine"] > 0.99
    feeds = prompts(left=True)
    long, short = greedy.generate(built, feeds, 6), greedy.generate(made[name], feeds, 6)
    assert (long == short).mean() > 0.5, "and it goes on with its cache as the float model does"


@pytest.mark.parametrize("name", TASKS)
def test_fp16(tmp_path: Path, made: dict[str, Artifact], texts: Artifact, name: str) -> None:
    inputs = {"from": made[name], **({} if name == "t5" else {"calibration": texts})}
    # The tiny T5's attention is not scaled, all but a choice of one place: near a tie it may fall either way.
    built = run_kind("fp16", tmp_path / "h", {"tolerance": 0.3 if name == "t5" else 0.02}, inputs=inputs)

    assert list(built.descriptor.components) == list(made[name].descriptor.components)
    assert built.descriptor.metrics["difference"] < (0.3 if name == "t5" else 0.01)
    for graph in built.descriptor.components.values():
        sessions.open_session(built.path / graph.file)
    before = sum(p.stat().st_size for p in made[name].path.glob("*.onnx"))
    assert built.descriptor.metrics["size_bytes"] < 0.85 * before
    feeds = prompts(left=name != "t5")
    assert (greedy.generate(built, feeds, 4) == greedy.generate(made[name], feeds, 4)).mean() > 0.9


@pytest.mark.parametrize(("kind", "hint"), [("int8", "leave out `calibration`"), ("fp16", "by `keep`")])
def test_several_graphs_are_not_calibrated(
    tmp_path: Path, made: dict[str, Artifact], texts: Artifact, kind: str, hint: str
) -> None:
    found = refusal(kind, tmp_path / "q", made["t5"], calibration=texts)
    assert found.title.startswith("a model of several graphs is not")
    assert hint in (found.hint or "")
    assert dict(found.facts)["graphs"] == "decoder, encoder"


def test_patterns_are_of_all_graphs_together(tmp_path: Path, made: dict[str, Artifact]) -> None:
    """One that fits a node of one graph alone is right; one that fits none is told."""
    heard = Heard()
    whole = run_kind("int8", tmp_path / "whole", {}, inputs={"from": made["t5"]}, heard=heard)
    encoder = whole.descriptor.components["encoder"].file
    names = [n.name for n in onnx_files.load(made["t5"].path / encoder).graph.node if n.op_type == "MatMul"]
    decoders = {n.name for n in onnx_files.load(made["t5"].path / "decoder.onnx").graph.node}
    only = next(n for n in names if n not in decoders)

    less = run_kind("int8", tmp_path / "less", {"exclude": [only]}, inputs={"from": made["t5"]})

    count = operators(whole, encoder)["MatMulInteger"] - operators(less, encoder)["MatMulInteger"]
    assert count == 1
    for kind, option in (("int8", "exclude"), ("fp16", "keep")):
        found = refusal(kind, tmp_path / kind, made["t5"], **{option: ["no such*"]})
        assert found.title.startswith(f"`{option}`")


def test_what_comes_after_takes_them(tmp_path: Path, made: dict[str, Artifact]) -> None:
    built = run_kind("int8", tmp_path / "q", {}, inputs={"from": made["t5"]})
    packed = run_kind("zip", tmp_path / "z", {}, inputs={"from": built}, history={"from": ()})
    served = run_kind("triton-repo", tmp_path / "r", {"text": False, "backend": "python"}, inputs={"from": built})

    assert packed.descriptor.format == "zip"
    assert len(served.descriptor.components) == 2
