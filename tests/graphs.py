"""Small seeded ONNX graphs, no torch needed, as artifacts: for kinds that take any ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelbuild import artifact
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.lib import onnx_files

FLOAT, HALF, STRING = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.STRING


def weights(*shape: int) -> Any:
    """Seeded float32 values, the same for the same shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def save(
    folder: Path,
    nodes: Sequence[Any],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    constants: dict[str, Any],
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> Artifact:
    """An ONNX artifact of a graph: inputs and outputs as (name, `TensorProto` type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, t, list(s)) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, list(s)) for n, t, s in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / onnx_files.MODEL))
    artifact.write(folder, Descriptor(format="onnx", components={"model": onnx_files.component(model)}))
    return artifact.read(folder)


def conv(folder: Path) -> Artifact:
    """`x` [batch, 3, h, w] through one convolution and one matrix product to `y` [batch, 10]."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="gemm"),
    ]
    constants = {"w": weights(8, 3, 3, 3), "v": weights(8, 10)}
    return save(folder, nodes, [("x", FLOAT, ["batch", 3, "h", "w"])], [("y", FLOAT, ["batch", 10])], constants)


def product(folder: Path, *, kind: int = FLOAT, batch: int | str = "batch") -> Artifact:
    """`y` = `x` [batch, 16] times a weight, in one element type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="project")
    constants = {"w": weights(16, 8).astype(dtype)}
    return save(folder, [node], [("x", kind, [batch, 16])], [("y", kind, [batch, 8])], constants)


def operator(folder: Path, op: str, domain: str = "", kind: int = FLOAT, **attributes: Any) -> Artifact:
    """One node, called `odd_one`, of any operator: `y` = op(`x` [4])."""
    node = helper.make_node(op, ["x"], ["y"], name="odd_one", domain=domain, **attributes)
    return save(folder, [node], [("x", kind, [4])], [("y", kind, ["n"])], {}, domains=[domain] if domain else [])


def quantized(folder: Path, zero: Any, *, weight_zero: Any = None) -> Artifact:
    """A QDQ product: nodes `q_in`, `dq_in`, `dq_w`, `project`; `zero` (a numpy scalar) is the input's zero point."""
    weight_zero = np.zeros(8, "int8") if weight_zero is None else weight_zero
    scaled = (weights(16, 8) * 30).astype(weight_zero.dtype)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q_in"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq_in"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="dq_w", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="project"),
    ]
    constants = {
        "s": np.float32(0.1),
        "z": zero,
        "wq": scaled,
        "ws": np.full(8, 0.1, "float32"),
        "wz": weight_zero,
    }
    return save(
        folder, nodes, [("x", FLOAT, ["batch", 16])], [("y", FLOAT, ["batch", 8])], constants, opset=19
    )  # fmt: skip


def overflowing(folder: Path, scale: float = 3000.0) -> Artifact:
    """`y` is made of the sum of squares of (`x` [batch, 16] times `scale`): squares that float16 cannot hold.

    Nodes `grow`, `square`, `sum`, `root`, `project`; the output is small again.
    """
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["grown"], name="grow"),
        helper.make_node("Mul", ["grown", "grown"], ["squared"], name="square"),
        helper.make_node("ReduceL1", ["squared"], ["summed"], name="sum", axes=[1], keepdims=1),
        helper.make_node("Sqrt", ["summed"], ["rooted"], name="root"),
        helper.make_node("Div", ["grown", "rooted"], ["normal"], name="divide"),
        helper.make_node("MatMul", ["normal", "w"], ["y"], name="project"),
    ]
    constants = {"k": np.float32(scale), "w": weights(16, 8)}
    return save(folder, nodes, [("x", FLOAT, ["batch", 16])], [("y", FLOAT, ["batch", 8])], constants)
