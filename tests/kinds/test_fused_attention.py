"""Attention fused in architectures for which ONNX Runtime's own patterns find none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from modelbuild.artifact import Artifact
from modelbuild.lib import attention_core, sessions
from tests.kinds import greedy
from tests.kinds.run import run_kind

Make = Callable[[str, str], Artifact]
CASES = {
    ("albert", "feature-extraction"): 2,
    ("bart", "text2text-generation"): 6,
    ("gpt2", "text-generation"): 2,
    ("llama", "text-generation"): 2,
    ("modernbert", "feature-extraction"): 2,
    ("mpnet", "feature-extraction"): 2,
    ("qwen3", "text-generation"): 2,
    ("t5", "text2text-generation"): 6,
    ("vit", "image-classification"): 2,
    ("whisper", "automatic-speech-recognition"): 6,
}
"""(model type, task) -> attentions in all graphs of a tiny model of two layers each."""


def operators(made: Artifact) -> Counter[str]:
    graphs = (onnx.load(made.path / c.file).graph for c in made.descriptor.components.values())
    return Counter(n.op_type for graph in graphs for n in graph.node)


@pytest.mark.torch
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_every_attention_is_one_operator(
    tmp_path: Path, checkpoint_for: Make, model_type: str, task: str, provider: str
) -> None:
    """`fused` has compared each graph with its input, at several shapes and with padding on both sides."""
    source = run_kind("onnx", tmp_path / "onnx", {}, inputs={"from": checkpoint_for(model_type, task)})
    made = run_kind("fused", tmp_path / "fused", {"provider": provider}, inputs={"from": source})
    found = operators(made)
    assert found["MultiHeadAttention"] + found["Attention"] == CASES[model_type, task]
    assert found["Softmax"] == 0


@pytest.mark.torch
@pytest.mark.parametrize(
    ("model_type", "task"),
    [("bert", "feature-extraction"), ("gpt2", "text-generation"), ("modernbert", "feature-extraction")],
)
def test_dynamo_s_graphs_too(tmp_path: Path, checkpoint_for: Make, model_type: str, task: str) -> None:
    """That of ModernBERT and GPT-2 leaves out biases that ONNX Runtime's fusions count on."""
    source = checkpoint_for(model_type, task)
    exported = run_kind("onnx", tmp_path / "onnx", {"exporter": "dynamo"}, inputs={"from": source})
    made = run_kind("fused", tmp_path / "fused", {}, inputs={"from": exported})
    assert made.descriptor.settings["fused"]["MultiHeadAttention"] == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    ("model_type", "task"), [("gpt2", "text-generation"), ("llama", "text-generation"), ("t5", "text2text-generation")]
)
def test_generates_the_same(tmp_path: Path, checkpoint_for: Make, model_type: str, task: str) -> None:
    source = run_kind("onnx", tmp_path / "onnx", {}, inputs={"from": checkpoint_for(model_type, task)})
    made = run_kind("fused", tmp_path / "fused", {}, inputs={"from": source})
    ids = np.random.default_rng(3).integers(5, 100, (3, 8))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    prompts = {"input_ids": ids * mask, "attention_mask": mask}
    np.testing.assert_array_equal(greedy.generate(made, prompts, 10), greedy.generate(source, prompts, 10))


def attention(*, transposed: bool = True) -> onnx.ModelProto:
    """softmax(Q Kᵀ scale + mask) V of inputs [batch, 2 heads, s, 4]."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    keys = [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2])]
    nodes = [
        *(keys if transposed else []),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Add", ["mask", "scaled"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    inputs = [value(n, "b", 2, "s", 4) for n in "qv"]
    inputs += [value("k", "b", 2, "s", 4) if transposed else value("kt", "b", 2, 4, "s"), value("mask", 1, 1, "s", "s")]
    constants = [numpy_helper.from_array(np.float32(0.25), "scale")]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", "b", 2, "s", 4)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_core_alone_computes_the_same() -> None:
    random = np.random.default_rng(0)
    feeds = {n: random.standard_normal((3, 2, 5, 4)).astype(np.float32) for n in "qkv"}
    feeds["mask"] = np.where(np.tril(np.ones((1, 1, 5, 5))) == 1, 0, -1e9).astype(np.float32)
    model = attention()
    (expected,) = sessions.open_session(model.SerializeToString()).run(None, feeds)
    assert attention_core.fuse(model, heads=2) == 1
    (found,) = sessions.open_session(model.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "Softmax" not in {n.op_type for n in model.graph.node}


def test_what_is_no_attention_stays() -> None:
    model = attention(transposed=False)
    before = model.SerializeToString()
    assert attention_core.fuse(model, heads=2) == 0
    assert model.SerializeToString() == before
