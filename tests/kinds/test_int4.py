"""int4: what becomes of weights, of Gemms and of several graphs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import onnx_files, sessions, weight_only
from tests import graphs, models
from tests.kinds.run import Heard, run_kind


def quantize(folder: Path, source: Artifact, heard: Heard | None = None, **values: Any) -> Artifact:
    return run_kind("int4", folder, values, inputs={"from": source}, heard=heard)


def refusal(folder: Path, source: Artifact, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        quantize(folder, source, **values)
    (found,) = caught.value.problems
    return found


def operators(built: Artifact, file: str = onnx_files.MODEL) -> dict[str, int]:
    return onnx_files.operators(onnx_files.load(built.path / file))


@pytest.fixture
def wide(tmp_path: Path) -> Artifact:
    """`x` [batch, 128] through a product and a Gemm with a turned weight to `y` [batch, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name="second", transB=1),
    ]
    constants = {"w": graphs.weights(128, 96), "v": graphs.weights(64, 96), "b": graphs.weights(64)}
    shapes = [("x", TensorProto.FLOAT, ["batch", 128])], [("y", TensorProto.FLOAT, ["batch", 64])]
    return graphs.save(tmp_path / "wide", nodes, *shapes, constants)


def likeness(a: Artifact, b: Artifact) -> float:
    feeds = {"x": np.random.default_rng(1).standard_normal((32, 128)).astype("float32")}
    x, y = (sessions.open_session(m.model_path).run(None, feeds)[0].reshape(-1) for m in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize(("bits", "least", "part"), [(4, 0.99, 0.25), (8, 0.9999, 0.4)])
def test_products_and_gemms_become_blocks(tmp_path: Path, wide: Artifact, bits: int, least: float, part: float) -> None:
    built = quantize(tmp_path / "q", wide, bits=bits)
    assert operators(built)["com.microsoft::MatMulNBits"] == 2
    assert built.descriptor.precision == f"int{bits}"
    assert least < likeness(wide, built) < 1
    assert built.model_path.stat().st_size < part * wide.model_path.stat().st_size
    assert built.descriptor.metrics["cosine_worst"] > least - 0.01


def test_smaller_blocks_are_better_and_larger(tmp_path: Path, wide: Artifact) -> None:
    fine, coarse = (quantize(tmp_path / str(n), wide, block_size=n) for n in (16, 128))
    assert likeness(wide, fine) > likeness(wide, coarse)
    assert fine.model_path.stat().st_size > coarse.model_path.stat().st_size


def test_the_same_bytes_each_time(tmp_path: Path, wide: Artifact) -> None:
    a, b = (quantize(tmp_path / n, wide) for n in "ab")
    assert a.model_path.read_bytes() == b.model_path.read_bytes()


def test_a_split_gemm_computes_the_same(wide: Artifact) -> None:
    model = onnx_files.load(wide.model_path)
    assert weight_only.split_gemms(model) == 1
    assert {n.op_type for n in model.graph.node} == {"MatMul", "Add"}
    assert {t.name for t in model.graph.initializer} == {"w", "v/turned", "b"}
    feeds = {"x": np.ones((2, 128), "float32")}
    expected, got = (sessions.open_session(m).run(None, feeds)[0] for m in (wide.model_path, model.SerializeToString()))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_what_is_excluded_stays(tmp_path: Path, wide: Artifact) -> None:
    built = quantize(tmp_path / "q", wide, exclude=["fir*"])
    assert operators(built) == {"Add": 1, "MatMul": 1, "com.microsoft::MatMulNBits": 1}
    assert "third" in refusal(tmp_path / "r", wide, exclude=["third"]).title


def test_what_is_quantized_is_refused(tmp_path: Path, wide: Artifact) -> None:
    built = quantize(tmp_path / "q", wide)
    assert refusal(tmp_path / "r", built).title == "the model is quantized already"


def test_a_model_without_products_is_refused(tmp_path: Path) -> None:
    source = graphs.operator(tmp_path / "relu", "Relu")
    assert refusal(tmp_path / "q", source).title == "the model has no product with a constant float32 weight"


def test_what_is_no_longer_the_model_is_refused(tmp_path: Path, wide: Artifact) -> None:
    found = refusal(tmp_path / "q", wide, least_cosine=1.0)
    assert found.title == "the quantized model does not compute what its input does"


@pytest.mark.parametrize(
    "options",
    [
        {"embeddings": True, "bits": 8},
        {"bits": 5},
        {"block_size": 33},
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, wide: Artifact, options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        quantize(tmp_path / "q", wide, **options)


@pytest.mark.torch
class TestModels:
    def test_embeddings_are_quantized_where_asked(self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact]) -> None:
        built = quantize(tmp_path / "q", tiny_onnx("bert"), embeddings=True, block_size=16)
        assert operators(built)["com.microsoft::GatherBlockQuantized"] >= 1
        assert all((built.path / name).is_file() for name in built.descriptor.tokenizer)

    @pytest.mark.parametrize(
        ("model_type", "task"),
        [("llama", "text-generation"), ("gpt2", "text-generation"), ("t5", "text2text-generation")],
    )
    def test_language_models(self, tmp_path: Path, model_type: str, task: str) -> None:
        models.write_model(tmp_path / "model", model_type, task=task)
        checkpoint = run_kind("checkpoint", tmp_path / "c", {}, sources={"path": tmp_path / "model"})
        source = run_kind("onnx", tmp_path / "onnx", {"task": task}, inputs={"from": checkpoint})
        heard = Heard()
        built = quantize(tmp_path / "q", source, heard, block_size=16, bits=8)
        assert list(built.descriptor.components) == list(source.descriptor.components)
        for graph in built.descriptor.components.values():
            assert operators(built, graph.file)["com.microsoft::MatMulNBits"] > 1
            onnx.checker.check_model(str(built.path / graph.file))
        assert built.descriptor.metrics["cosine_worst"] > 0.95
        assert any("MatMulNBits" in line for line in heard.logs)
