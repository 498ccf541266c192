"""From float32 to float16: ONNX Runtime's converter, and what has to be mended before and after it.

Upstream: `onnxruntime.transformers.float16.convert_float_to_float16`. It converts every node but those that are to
stay in float32, and puts a Cast at each of their inputs and outputs. As it comes, two neighbours that stay still hand
each other values through float16 (which is what they were to be kept from), a value that two of them read gets two
casts of one name, and nodes are out of order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from modelbuild.lib import onnx_values

LARGEST = 65504.0
"""The largest finite float16."""
MASK = 1e30
"""From here on a value stands for infinity (the least float32 in attention masks), and needs no room in float16."""
MASKED = 1e4
"""What such a constant becomes: as good as infinite to a softmax, and no overflow when something is added to it."""
FLOAT, FLOAT16 = 1, 10
INTEGERS = (6, 7)
RECKONING = ("Abs", "Add", "Cast", "Ceil", "Div", "Floor", "Log", "Max", "Min", "Mul", "Neg", "Range", "Sqrt", "Sub")
LESS_BLOCKED = {"tensorrt": ("Max", "Min", "TopK")}
"""Operators of the converter's block list that the runtime has float16 kernels for."""


def blocked_operators(runtime: str) -> list[str]:
    """Operators that the converter leaves in float32 for a runtime."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return [op for op in DEFAULT_OP_BLOCK_LIST if op not in LESS_BLOCKED.get(runtime, ())]


def float_nodes(model: Any, operators: Collection[str]) -> list[str]:
    """The nodes of these operators that make or read float32, by name."""
    types = onnx_values.element_types(model)
    found = (n for n in model.graph.node if n.op_type in operators)
    return [n.name for n in found if FLOAT in (types.get(v) for v in (*n.input, *n.output))]


def norm_nodes(model: Any) -> list[str]:
    """The nodes of root-mean-square norms, by name: squares of small values vanish below float16's least, 6e-8.

    A norm is a mean of squares (`Pow` or `Mul` of a value by itself), what is added to it, and its root's reciprocal.
    """
    made = {o: n for n in model.graph.node for o in n.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[str] = []
    for mean in model.graph.node:
        square = made.get(mean.input[0]) if mean.op_type == "ReduceMean" else None
        if square is None or not (square.op_type == "Pow" or (square.op_type == "Mul" and len(set(square.input)) == 1)):
            continue
        found += [square.name, mean.name]
        ahead = list(readers.get(mean.output[0], ()))
        while ahead:
            node = ahead.pop()
            if node.op_type in ("Add", "Sqrt", "Reciprocal") and node.name not in found:
                found.append(node.name)
                ahead += readers.get(node.output[0], ())
            elif node.op_type == "Div":
                found.append(node.name)
    return found


def counting_nodes(model: Any) -> list[str]:
    """The nodes that reckon with float32 what becomes an integer (T5's buckets of distances), by name: rounded first,
    they could give its neighbour."""
    types = onnx_values.element_types(model)
    made = {o: n for n in model.graph.node for o in n.output}
    found: list[str] = []
    ends = [n for n in model.graph.node if n.op_type == "Cast" and types.get(n.output[0]) in INTEGERS]
    ahead = [n.input[0] for n in ends]
    while ahead:
        value = ahead.pop()
        node = made.get(value)
        if node is None or types.get(value) != FLOAT or node.op_type not in RECKONING or node.name in found:
            continue
        found.append(node.name)
        ahead += node.input
    return found


def name_nodes(model: Any) -> None:
    """Give each node without a name one of its own: nodes are kept in float32 by name."""
    taken = {n.name for n in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def soften_masks(model: Any) -> int:
    """Replace constants that stand for infinity by what float16 can add to; how many tensors held such values."""
    import numpy as np
    from onnx import numpy_helper

    found = 0
    shaped = [a.t for n in model.graph.node if n.op_type == "ConstantOfShape" for a in n.attribute if a.name == "value"]
    for tensor in (*onnx_values.constants(model.graph, small=1 << 24).values(), *shaped):
        if tensor.data_type != FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        huge = np.abs(values) >= MASK
        if huge.any():
            found += 1
            softened = np.where(huge, np.sign(values) * np.float32(MASKED), values).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(softened, tensor.name))
    return found


def convert(model: Any, *, keep_io_types: bool, operators: Collection[str], nodes: Collection[str]) -> Any:
    """The model in float16, except for `operators` and `nodes` (by name); `model` is used up."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _declare_types(model)
    converted = float16.convert_float_to_float16(
        model,
        keep_io_types=keep_io_types,
        disable_shape_infer=True,
        op_block_list=list(operators),
        node_block_list=list(nodes),
    )
    _join_casts(converted.graph)
    OnnxModel(converted).topological_sort()
    del converted.graph.value_info[:]
    return converted


def _declare_types(model: Any) -> None:
    """Write every value's element type into the graph: the converter casts only what it finds there."""
    from onnx import helper

    types = onnx_values.element_types(model)
    del model.graph.value_info[:]
    known = {v.name for v in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for output in [o for n in model.graph.node for o in n.output]:
        if output in types and output not in known:
            model.graph.value_info.append(helper.make_tensor_value_info(output, types[output], None))


def _join_casts(graph: Any) -> None:
    """Let neighbours that stay in float32 hand over float32, and keep one cast of each value to each type."""
    wide = {n.output[0]: n.input[0] for n in graph.node if _casts_to(n, FLOAT16) and _is_added(n)}
    renamed: dict[str, str] = {}
    seen: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if _casts_to(node, FLOAT) and _is_added(node):
            source = node.input[0]
            if source in wide:
                renamed[node.output[0]] = wide[source]
                continue
            if source in seen:
                renamed[node.output[0]] = seen[source]
                continue
            seen[source] = node.output[0]
        kept.append(node)
    for node in kept:
        for place, name in enumerate(node.input):
            if name in renamed and renamed[name] != name:
                node.input[place] = renamed[name]
    used = {i for n in kept for i in n.input} | {o.name for o in graph.output}
    alive = [n for n in kept if not (_is_added(n) and n.op_type == "Cast" and n.output[0] not in used)]
    copies = [type(n).FromString(n.SerializeToString()) for n in alive]
    del graph.node[:]
    graph.node.extend(copies)


def _casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def _is_added(node: Any) -> bool:
    """Whether the converter put this node in."""
    return str(node.name).endswith(("_cast_to_fp16_node", "_cast_to_fp32_node"))
