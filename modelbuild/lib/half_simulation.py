"""A float16 model as a GPU computes it, for a CPU: the float32 graph, with weights and results rounded to float16.

Running the float16 model itself on a CPU would not show what float16 does to it: ONNX Runtime computes most of its
operators in float32 there, and leaves out the roundings between them, overflows included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from modelbuild.lib import onnx_values
from modelbuild.lib.half import FLOAT, FLOAT16
from modelbuild.lib.onnx_graph import Graph


def simulated(model: Any, kept: Collection[str]) -> Any:
    """A float32 `ModelProto` that computes `model` as if only the nodes `kept` (by name) were in float32.

    A result is rounded once, as kernels that accumulate in float32 do. Subgraphs are computed as they are.
    """
    types = onnx_values.element_types(model)
    graph = Graph(model)
    _round_weights(graph, kept)
    nodes: list[Any] = []
    wide = {name: f"{name}/half" for name in graph.inputs if types.get(name) == FLOAT}
    for name, rounded in wide.items():
        nodes += _rounding(name, rounded)
    for node in graph.nodes:
        for place, name in enumerate(node.input):
            node.input[place] = wide.get(name, name)
        nodes.append(node)
        if node.name in kept:
            continue
        for place, name in enumerate(node.output):
            if name and types.get(name) == FLOAT:
                node.output[place] = f"{name}/whole"
                nodes += _rounding(node.output[place], name)
    graph.nodes = nodes
    return graph.model()


def _rounding(source: str, rounded: str) -> Iterator[Any]:
    """`rounded` = `source` through float16 and back."""
    from onnx import helper

    yield helper.make_node("Cast", [source], [f"{rounded}/narrow"], to=FLOAT16)
    yield helper.make_node("Cast", [f"{rounded}/narrow"], [rounded], to=FLOAT)


def _round_weights(graph: Graph, kept: Collection[str]) -> None:
    """Round the constants that a node in float16 reads; as in the converter, all that read one read it rounded."""
    import numpy as np

    read = {name for node in graph.nodes if node.name not in kept for name in node.input}
    for name, value in graph.constants.items():
        if name in read and value.dtype == np.float32:
            with np.errstate(over="ignore"):
                graph.constants[name] = value.astype(np.float16).astype(np.float32)
