"""fp16: what stays in float32 and why, equality with the input, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import sessions
from tests import graphs
from tests.kinds.run import Heard, run_kind


def halve(
    folder: Path, source: Artifact, *, data: Artifact | None = None, heard: Heard | None = None, **values: Any
) -> Artifact:
    inputs = {"from": source} if data is None else {"from": source, "calibration": data}
    return run_kind("fp16", folder, values, inputs=inputs, heard=heard)


def refusal(folder: Path, source: Artifact, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        halve(folder, source, **values)
    (found,) = caught.value.problems
    return found


@pytest.fixture
def rows(tmp_path: Path) -> Artifact:
    """64 rows for the input `x` [batch, 16]."""
    values = np.random.default_rng(0).standard_normal((64, 16)).astype("float32")
    np.savez(tmp_path / "rows.npz", x=values)
    return run_kind("dataset", tmp_path / "rows", {}, sources={"path": tmp_path / "rows.npz"})


def kept(built: Artifact) -> list[str]:
    found: list[str] = built.descriptor.settings["float32_nodes"]
    return found


def weight_types(built: Artifact) -> set[int]:
    return {t.data_type for t in onnx.load(built.model_path).graph.initializer if t.dims}


def test_weights_become_half_and_inputs_stay_float32(tmp_path: Path) -> None:
    heard = Heard()
    built = halve(tmp_path / "half", graphs.conv(tmp_path / "onnx"), heard=heard)
    assert built.descriptor.precision == "fp16"
    assert weight_types(built) == {TensorProto.FLOAT16}
    assert [t.dtype for t in built.descriptor.model().inputs] == ["float32"]
    assert kept(built) == []
    assert built.descriptor.metrics["difference"] < 0.01
    assert "0 of 5 nodes stay in float32" in " ".join(heard.logs)


def test_inputs_and_outputs_become_half_when_told_to(tmp_path: Path) -> None:
    built = halve(tmp_path / "half", graphs.conv(tmp_path / "onnx"), keep_io_types=False)
    model = built.descriptor.model()
    assert [t.dtype for t in (*model.inputs, *model.outputs)] == ["float16", "float16"]


def test_nodes_whose_values_overflow_on_real_data_stay_in_float32(tmp_path: Path, rows: Artifact) -> None:
    heard = Heard()
    built = halve(tmp_path / "half", graphs.overflowing(tmp_path / "onnx"), data=rows, heard=heard)
    assert kept(built) == ["root", "square", "sum"]
    assert built.descriptor.metrics["difference"] < 0.01
    assert "3 of 6 nodes stay in float32 (3 for values up to 2" in " ".join(heard.logs)


def test_neighbours_that_stay_hand_over_float32(tmp_path: Path, rows: Artifact) -> None:
    """ONNX Runtime's converter has them hand each other float16, which is infinity here."""
    built = halve(tmp_path / "half", graphs.overflowing(tmp_path / "onnx"), data=rows)
    nodes = {n.name: n for n in onnx.load(built.model_path).graph.node}
    assert nodes["sum"].input[0] == nodes["square"].output[0]
    assert len(set(nodes["square"].input)) == 1


def test_without_data_an_overflow_fails_the_build(tmp_path: Path) -> None:
    found = refusal(tmp_path / "half", graphs.overflowing(tmp_path / "onnx"))
    assert found.title == "the float16 model does not compute what its input does"
    assert float(dict(found.facts)["relative difference"]) > 0.9
    assert "give `calibration`" in (found.hint or "")


def test_headroom_keeps_what_comes_near_the_end(tmp_path: Path, rows: Artifact) -> None:
    source = graphs.overflowing(tmp_path / "onnx", scale=10.0)
    assert kept(halve(tmp_path / "bare", source, data=rows, headroom=1.0)) == []
    assert kept(halve(tmp_path / "wide", source, data=rows, headroom=100.0)) == ["root", "square", "sum"]


def test_nodes_and_operators_stay_when_told_to(tmp_path: Path) -> None:
    source = graphs.conv(tmp_path / "onnx")
    assert kept(halve(tmp_path / "named", source, keep=["ge*"])) == ["gemm"]
    built = halve(tmp_path / "operator", source, keep_ops=["Conv"])
    assert kept(built) == ["conv"]
    assert TensorProto.FLOAT in weight_types(built)


def test_a_pattern_that_fits_no_node_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path / "half", graphs.conv(tmp_path / "onnx"), keep=["gem"])
    assert found.title == "`keep`: no node is called `gem`"
    assert found.hint == "did you mean `gemm`?"


def test_minus_infinity_in_a_mask_does_not_overflow(tmp_path: Path) -> None:
    """A mask adds float32's least value to a score: in float16 that sum would be minus infinity, and all of it NaN."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["shown"], name="cast_mask", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "shown"], ["hidden"], name="invert"),
        helper.make_node("Mul", ["hidden", "least"], ["bias"], name="scale_mask"),
        helper.make_node("Add", ["x", "bias"], ["scores"], name="add_mask"),
        helper.make_node("Softmax", ["scores"], ["y"], name="softmax", axis=1),
    ]
    sides = [("x", graphs.FLOAT, ["batch", 16]), ("mask", TensorProto.INT64, ["batch", 16])]
    constants = {"one": np.float32(1), "least": np.finfo("float32").min}
    source = graphs.save(tmp_path / "onnx", nodes, sides, [("y", graphs.FLOAT, ["batch", 16])], constants)
    built = halve(tmp_path / "half", source)
    session = sessions.open_session(built.model_path)
    shown = np.zeros((1, 16), "int64")
    shown[0, :3] = 1
    (got,) = session.run(None, {"x": np.zeros((1, 16), "float32"), "mask": shown})
    np.testing.assert_allclose(got[0], [1 / 3] * 3 + [0] * 13, atol=1e-3)


def test_tensorrt_has_more_operators_in_half(tmp_path: Path) -> None:
    nodes = [helper.make_node("Min", ["x", "c"], ["y"], name="clip")]
    sides = [("x", graphs.FLOAT, ["batch", 16])], [("y", graphs.FLOAT, ["batch", 16])]
    source = graphs.save(tmp_path / "onnx", nodes, *sides, {"c": np.float32(1)})
    assert kept(halve(tmp_path / "cuda", source)) == ["clip"]
    assert kept(halve(tmp_path / "tensorrt", source, runtime="tensorrt")) == []


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path / "half", graphs.quantized(tmp_path / "onnx", np.int8(0)))
    assert found.title == "the model is quantized"


def test_a_model_in_half_already_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path / "half", graphs.product(tmp_path / "onnx", kind=graphs.HALF))
    assert found.title == "the model has nothing in float32"


def test_data_for_other_inputs_is_refused(tmp_path: Path, rows: Artifact) -> None:
    nodes = [helper.make_node("Relu", ["pixels"], ["y"], name="relu")]
    sides = [("pixels", graphs.FLOAT, ["batch", 16])], [("y", graphs.FLOAT, ["batch", 16])]
    found = refusal(tmp_path / "half", graphs.save(tmp_path / "onnx", nodes, *sides, {}), data=rows)
    assert found.title == "the calibration dataset has no values for the input `pixels`"


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path, rows: Artifact) -> None:
    source = graphs.overflowing(tmp_path / "onnx")
    one, two = (halve(tmp_path / name, source, data=rows).model_path.read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.torch
def test_fused_operators_are_converted_for_cuda_and_refused_for_tensorrt(
    tmp_path: Path, tiny_onnx: Callable[[str], Artifact]
) -> None:
    fused = run_kind("fused", tmp_path / "fused", {"provider": "cuda"}, inputs={"from": tiny_onnx("bert")})
    built = halve(tmp_path / "half", fused, keep=["*LayerNorm*"])
    assert built.descriptor.precision == "fp16"
    assert kept(built)
    found = refusal(tmp_path / "plan", fused, runtime="tensorrt")
    assert found.title == "TensorRT does not know ONNX Runtime's fused operators"


@pytest.mark.torch
def test_minilm_is_half_the_size_and_the_same(tmp_path: Path, minilm: Artifact) -> None:
    source = run_kind("onnx", tmp_path / "onnx", {}, inputs={"from": minilm})
    built = halve(tmp_path / "half", source)
    assert built.descriptor.metrics["size_bytes"] < 0.51 * source.model_path.stat().st_size
    assert built.descriptor.metrics["difference"] < 0.01
