"""TensorRT-RTX plans, compiled for real without a GPU: what they say of themselves, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from tests import graphs
from tests.kinds.run import Heard, run_kind

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'modelbuild[rtx]'")

BATCH = {"batch": [1, 4, 8]}
IMAGES = [{"batch": [1, 4, 8], "h": [8, 16, 32], "w": [8, 16, 32]}]
TEXTS = [{"batch": [1, 8, 32], "sequence": [8, 128, 512]}]


def plan(folder: Path, source: Artifact, *, heard: Heard | None = None, **values: Any) -> Artifact:
    return run_kind("trt-plan", folder, {"backend": "rtx", **values}, inputs={"from": source}, heard=heard)


def refused(folder: Path, source: Artifact, **values: Any) -> tuple[Problem, ...]:
    with pytest.raises(ProblemError) as caught:
        plan(folder, source, **values)
    return caught.value.problems


def refusal(folder: Path, source: Artifact, **values: Any) -> Problem:
    (found,) = refused(folder, source, **values)
    return found


def text(problem: Problem) -> str:
    return " | ".join((problem.title, *(f"{label}: {value}" for label, value in problem.facts), problem.hint or ""))


# What a plan is


def test_a_plan_says_what_it_is_without_a_gpu(tmp_path: Path) -> None:
    heard = Heard()
    built = plan(
        tmp_path / "plan",
        graphs.conv(tmp_path / "onnx"),
        heard=heard,
        profiles=IMAGES,
        compute_capabilities=["8.9", "8.6"],
    )
    said = built.descriptor
    model = said.model()
    assert said.format == "trt-plan"
    assert built.model_path.stat().st_size == said.metrics["size_bytes"] > 10_000
    assert [(t.name, t.dtype, t.shape) for t in model.inputs] == [("x", "float32", ("batch", 3, "h", "w"))]
    assert [(t.name, t.dtype, t.shape) for t in model.outputs] == [("y", "float32", ("batch", 10))]
    assert said.settings["backend"] == "rtx"
    assert said.settings["backend_version"].count(".") == 3
    assert said.settings["compute_capabilities"] == ["8.6", "8.9"]
    assert said.settings["profiles"] == [
        {"x": {"min": [1, 3, 8, 8], "opt": [4, 3, 16, 16], "max": [8, 3, 32, 32]}},
    ]
    assert said.settings["layers"] == {"convolution": {"float32": 1}, "matrix_multiply": {"float32": 1}}
    layers = json.loads((built.path / "layers.json").read_text())
    assert {"conv", "gemm", "relu"} <= {layer["name"] for layer in layers}
    assert any("for compute capability 8.6, 8.9, 1 profile" in line for line in heard.logs)
    told = [p.done / p.total for p in heard.progress]
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_several_profiles_make_one_plan(tmp_path: Path) -> None:
    shapes = {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [1, 3, 8, 8]}
    built = plan(tmp_path / "plan", graphs.conv(tmp_path / "onnx"), profiles=[*IMAGES, {"x": shapes}])
    assert [p["x"]["max"] for p in built.descriptor.settings["profiles"]] == [[8, 3, 32, 32], [1, 3, 8, 8]]
    assert built.descriptor.settings["compute_capabilities"] == ["8.0+"]


def test_a_model_of_fixed_shapes_needs_no_profile(tmp_path: Path) -> None:
    built = plan(tmp_path / "plan", graphs.product(tmp_path / "onnx", batch=4))
    assert built.descriptor.settings["profiles"] == [{"x": {"min": [4, 16], "opt": [4, 16], "max": [4, 16]}}]


def test_symmetric_int8_becomes_int8_products(tmp_path: Path) -> None:
    source = graphs.quantized(tmp_path / "onnx", np.int8(0))
    built = plan(tmp_path / "plan", source, profiles=[BATCH])
    assert built.descriptor.settings["layers"] == {"matrix_multiply": {"int8": 1}}


def test_fp8_compiles_for_gpus_that_have_it(tmp_path: Path) -> None:
    import ml_dtypes

    fp8 = ml_dtypes.float8_e4m3fn
    source = graphs.quantized(tmp_path / "onnx", np.array(0, fp8), weight_zero=np.zeros(8, fp8))
    built = plan(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["8.9"])
    assert built.descriptor.settings["layers"] == {"matrix_multiply": {"float8_e4m3fn": 1}}
    portable = plan(tmp_path / "portable", source, profiles=[BATCH])
    assert portable.descriptor.settings["compute_capabilities"] == ["8.9+"]


def test_turing_takes_fp16_products(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "onnx", kind=graphs.HALF)
    built = plan(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["7.5"])
    assert built.descriptor.settings["layers"] == {"matrix_multiply": {"float16": 1}}


@pytest.mark.torch
def test_a_tiny_bert_compiles_from_its_export(tmp_path: Path, tiny_onnx: Callable[[str], Artifact]) -> None:
    source = tiny_onnx("bert")
    built = plan(tmp_path, source, profiles=[{"batch": [1, 2, 4], "sequence": [4, 8, 32]}])
    assert [t.shape for t in built.descriptor.model().inputs] == [("batch", "sequence")] * 3
    assert built.descriptor.tokenizer == source.descriptor.tokenizer
    for name in built.descriptor.tokenizer:
        assert (built.path / name).is_file()


# MiniLM, whole


@pytest.fixture(scope="module")
def minilm_onnx(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_kind("onnx", tmp_path_factory.mktemp("minilm-onnx"), {}, inputs={"from": minilm})


@pytest.fixture(scope="module")
def sentences(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("sentences")
    path = Path(__file__).parents[2] / "recipes" / "data" / "sentences.jsonl"
    return run_kind(
        "dataset", folder, {"max_length": 128}, inputs={"tokenizer": minilm}, sources={"path": path}
    )  # fmt: skip


@pytest.fixture(scope="module")
def minilm_plans(
    minilm_onnx: Artifact, sentences: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """MiniLM's plans in three precisions, for compute capability 8.6 and 8.9."""
    folder = tmp_path_factory.mktemp("minilm-plans")
    data = {"from": minilm_onnx, "calibration": sentences}
    sources = {
        "fp32": minilm_onnx,
        "fp16": run_kind("fp16", folder / "half", {"runtime": "tensorrt"}, inputs=data),
        "int8": run_kind("int8", folder / "qdq", {"runtime": "tensorrt"}, inputs=data),
    }
    made = {"profiles": TEXTS, "compute_capabilities": ["8.6", "8.9"]}
    return {name: plan(folder / name, source, **made) for name, source in sources.items()}


@pytest.mark.torch
def test_minilm_compiles_in_the_precision_of_its_graph(minilm_plans: dict[str, Artifact]) -> None:
    products = {name: built.descriptor.settings["layers"]["matrix_multiply"] for name, built in minilm_plans.items()}
    assert products == {"fp32": {"float32": 48}, "fp16": {"float16": 48}, "int8": {"float32": 12, "int8": 36}}
    sizes = {name: built.descriptor.metrics["size_bytes"] for name, built in minilm_plans.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.75 * sizes["fp32"]
    for built in minilm_plans.values():
        assert [t.name for t in built.descriptor.model().inputs] == ["input_ids", "attention_mask", "token_type_ids"]
        assert built.descriptor.model().outputs[0].shape == ("batch", "sequence", 384)


@pytest.mark.torch
def test_a_fused_model_is_refused_with_the_nodes(minilm_onnx: Artifact, tmp_path: Path) -> None:
    fused = run_kind("fused", tmp_path / "fused", {}, inputs={"from": minilm_onnx})
    found = refusal(tmp_path / "plan", fused, profiles=TEXTS)
    assert found.title == "TensorRT does not know ONNX Runtime's fused operators"
    assert "Attention_0 (" in text(found)
    assert "take `from` the exported model, not the fused one" in text(found)


# What cannot become a plan, before anything slow


def test_uint8_is_refused_with_the_nodes_and_the_way_out(tmp_path: Path) -> None:
    source = graphs.quantized(tmp_path / "onnx", np.uint8(128))
    found = refusal(tmp_path / "plan", source, profiles=[BATCH])
    assert found.title == "TensorRT takes only signed int8, and the model is quantized to uint8"
    assert "q_in (QuantizeLinear), dq_in (DequantizeLinear)" in text(found)
    assert "`kind: int8, runtime: tensorrt`" in text(found)


@pytest.mark.parametrize(
    ("zero", "weight_zero", "node"),
    [(np.int8(3), None, "q_in (QuantizeLinear)"), (np.int8(0), np.full(8, 2, "int8"), "dq_w (DequantizeLinear)")],
    ids=["activation", "weight"],
)
def test_zero_points_are_refused_with_the_nodes(tmp_path: Path, zero: Any, weight_zero: Any, node: str) -> None:
    source = graphs.quantized(tmp_path / "onnx", zero, weight_zero=weight_zero)
    found = refusal(tmp_path / "plan", source, profiles=[BATCH])
    assert found.title == "TensorRT takes only symmetric int8, and the model has zero points that are not zero"
    assert node in text(found)


def test_fp8_is_refused_for_a_gpu_without_it(tmp_path: Path) -> None:
    import ml_dtypes

    fp8 = ml_dtypes.float8_e4m3fn
    source = graphs.quantized(tmp_path / "onnx", np.array(0, fp8), weight_zero=np.zeros(8, fp8))
    found = refusal(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["8.6", "8.9"])
    assert found.title == "fp8 needs compute capability 8.9 or newer, not 8.6"
    assert "q_in (QuantizeLinear)" in text(found)


@pytest.mark.parametrize("quantize", [False, True], ids=["fp32", "int8"])
def test_fp32_products_are_refused_for_turing(tmp_path: Path, quantize: bool) -> None:
    source = graphs.quantized(tmp_path / "onnx", np.int8(0)) if quantize else graphs.product(tmp_path / "onnx")
    found = refusal(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["7.5"])
    assert found.title == "TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5"
    assert "project (MatMul)" in text(found)
    assert "kind: fp16" in text(found)


def test_operators_of_other_domains_are_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path / "plan", graphs.operator(tmp_path / "onnx", "Frob", "my.ops"))
    assert "odd_one (Frob)" in text(found)
    assert "my.ops" in text(found)
    assert "`plugins`" in text(found)


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    found = refusal(tmp_path / "plan", graphs.operator(tmp_path / "onnx", "Unique", sorted=1))
    assert found.title == "TensorRT has no operator `Unique`"
    assert "node: odd_one (number 0)" in text(found)


def test_all_that_is_wrong_with_a_graph_is_told_at_once(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("BiasGelu", ["x", "b"], ["g"], name="fused_gelu", domain="com.microsoft"),
        helper.make_node("Frob", ["g"], ["y"], name="frob", domain="my.ops"),
    ]
    sixteen = [("x", graphs.FLOAT, [4, 16])]
    source = graphs.save(
        tmp_path / "onnx",
        nodes,
        sixteen,
        [("y", graphs.FLOAT, [4, 16])],
        {"b": graphs.weights(16)},
        domains=["com.microsoft", "my.ops"],
    )
    found = refused(tmp_path / "plan", source)
    assert [next(v for n, v in p.facts if n == "domain") for p in found] == ["com.microsoft", "my.ops"]


def test_strings_are_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path / "plan", graphs.operator(tmp_path / "onnx", "Identity", kind=graphs.STRING))
    assert found.title == "TensorRT has no strings"


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    import onnx

    source = graphs.product(tmp_path / "onnx")
    model = onnx.load(source.model_path)
    onnx.save(model, source.model_path, save_as_external_data=True, location="weights.data", size_threshold=0)
    (source.path / "weights.data").unlink()
    found = refusal(tmp_path / "plan", source, profiles=[BATCH])
    assert found.title == "the weights of `model.onnx` are missing"


def test_what_is_no_onnx_model_is_refused(tmp_path: Path, tokenizer_artifact: Artifact) -> None:
    assert refusal(tmp_path, tokenizer_artifact).title == "`trt-plan` needs an ONNX model"


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "onnx")
    found = refusal(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["9.0"])
    assert "does not compile for compute capability 9.0" in found.title
    assert "8.6, 8.9, 12.0" in text(found)


def test_the_gpu_at_hand_cannot_be_the_target_where_there_is_none(tmp_path: Path) -> None:
    from modelbuild.lib import gpu

    if gpu.first() is not None:
        pytest.skip("this machine has a GPU")
    source = graphs.product(tmp_path / "onnx")
    found = refusal(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["current"])
    assert found.title == "the GPU cannot be used"
    assert "cudaError 35" in text(found)


# Failures that only TensorRT finds


def test_tensorrts_own_words_reach_the_user(tmp_path: Path) -> None:
    """A product that is no MatMul: not looked for before, but the compiler's message and its node are told."""
    from onnx import helper

    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="contract", equation="bi,io->bo")
    sides = [("x", graphs.FLOAT, ["batch", 16])], [("y", graphs.FLOAT, ["batch", 8])]
    source = graphs.save(tmp_path / "onnx", [node], *sides, {"w": graphs.weights(16, 8)})
    found = refusal(tmp_path / "plan", source, profiles=[BATCH], compute_capabilities=["7.5"])
    assert found.title == "TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5"
    assert "contract" in text(found)
    assert "FP32 GEMM is not supported" in text(found)


def test_messages_of_polygraphy_and_tensorrt_reach_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan(tmp_path / "plan", graphs.product(tmp_path / "onnx"), profiles=[BATCH])
    assert "Finished engine building" in capfd.readouterr().err
