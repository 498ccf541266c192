"""Tensors of an ONNX graph by name: its constants, and the element types of all values."""

from __future__ import annotations

from typing import Any

FLOATS = (1, 10, 11, 16)
"""`TensorProto` types float32, float16, float64 and bfloat16."""


def constants(graph: Any, *, small: int | None = None) -> dict[str, Any]:
    """Name -> `TensorProto` of initializers and of Constant nodes; with `small`, those of at most so many elements."""
    found = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    if small is None:
        return found
    return {name: t for name, t in found.items() if _elements(t) <= small}


def any_nonzero(tensor: Any) -> bool:
    """Whether a tensor holds a value that is not zero; False for one whose values lie in a file that is not read."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    return bool(numpy_helper.to_array(tensor).any())


def element_types(model: Any) -> dict[str, int]:
    """Name -> `TensorProto` type of every value that can be told; the model's weights are not needed.

    ONNX's shape inference does not know ONNX Runtime's own operators, and stops there. They, and what it can tell
    nothing of behind them, make what they are given.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if _elements(tensor) > 1024:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
    inferred = onnx.shape_inference.infer_shapes(bare)
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types |= {name: t.data_type for name, t in constants(graph).items()}
    for node in model.graph.node:
        if not types.get(node.output[0]):
            types[node.output[0]] = next((types[i] for i in node.input if types.get(i) in FLOATS), 0)
    return {name: kind for name, kind in types.items() if kind}


def _elements(tensor: Any) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
