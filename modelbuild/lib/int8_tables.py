"""Embedding tables in int8 with a scale per row: a quarter of the bytes, and rows keep their direction."""

from __future__ import annotations

from typing import Any

from modelbuild.lib.onnx_graph import Graph, attribute

SMALLEST = 16384
"""Tables with fewer values stay: token types and the like."""
BLOCK = 512
"""Rows rounded at once: they stay in the CPU's cache."""


def quantize(graph: Graph) -> list[str]:
    """Replace every Gather of rows of a constant table by Gather(int8), Gather(scale), Cast and Mul; the tables' names.

    A DequantizeLinear before the Gather would dequantize the whole table at every run. Tables that anything else reads
    as floats (tied output projections) are quantized all the same where they are looked up.
    """
    import numpy as np
    from onnx import TensorProto, helper

    made: dict[str, tuple[str, str]] = {}
    nodes: list[Any] = []
    for node in graph.nodes:
        table = graph.constants.get(node.input[0]) if node.op_type == "Gather" else None
        fits = table is not None and table.ndim == 2 and table.dtype == np.float32 and table.size >= SMALLEST
        if table is None or not fits or attribute(node, "axis", 0) != 0:
            nodes.append(node)
            continue
        if node.input[0] not in made:
            codes, scale = rounded(table)
            name = node.input[0]
            made[name] = (graph.add_constant(f"{name}_int8", codes), graph.add_constant(f"{name}_scale", scale))
        codes_name, scale_name = made[node.input[0]]
        rows, scales, floats = (graph.unused_name(f"{node.output[0]}_{part}") for part in ("rows", "scales", "floats"))
        nodes += [
            helper.make_node("Gather", [codes_name, node.input[1]], [rows], name=node.name),
            helper.make_node("Gather", [scale_name, node.input[1]], [scales], name=f"{node.name}/scale"),
            helper.make_node("Cast", [rows], [floats], name=f"{node.name}/cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [floats, scales], list(node.output), name=f"{node.name}/mul"),
        ]
    graph.nodes = nodes
    return list(made)


def rounded(table: Any) -> tuple[Any, Any]:
    """(codes int8 [rows, width], scales float32 [rows, 1]) of a float32 table."""
    import numpy as np

    codes = np.empty(table.shape, dtype=np.int8)
    scales = np.empty((len(table), 1), dtype=np.float32)
    for first in range(0, len(table), BLOCK):
        block = table[first : first + BLOCK]
        reach = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
        scale = np.maximum(reach / np.float32(127), np.finfo(np.float32).tiny)
        codes[first : first + BLOCK] = np.rint(block / scale)
        scales[first : first + BLOCK] = scale
    return codes, scales
