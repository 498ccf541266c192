"""Dividing an activation's channels at no cost: by changing the constants of what makes it, where that is exact."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from modelbuild.lib.onnx_graph import Graph

NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


def absorb(graph: Graph, activation: str, factors: Any, readers: Collection[Any], *, products: bool = True) -> bool:
    """Divide the channels of `activation` by `factors` [K] inside the node that makes it; whether that could be done.

    It can when nothing but `readers` reads the activation and it is made by a layer norm, by a product with a
    constant, or by an addition, multiplication or ReLU behind one of these. Otherwise nothing is changed.
    `products` False leaves the constants of products alone: columns divided by different factors do not fit one scale.
    """
    every, makers = graph.readers(), graph.makers()
    if activation in graph.outputs or len(every.get(activation, ())) != len(readers):
        return False
    changes: dict[tuple[int, int], Any] = {}
    if not _collect(graph, activation, factors, makers, every, changes, products):
        return False
    nodes = {id(node): node for node in graph.nodes}
    for (which, index), value in changes.items():
        node = nodes[which]
        name = node.input[index]
        if len(every[name]) == 1 and name not in graph.outputs:
            graph.constants[name] = value
        else:
            node.input[index] = graph.add_constant(f"{name}_smoothed", value)
    return True


def _collect(
    graph: Graph,
    activation: str,
    factors: Any,
    makers: Mapping[str, Any],
    every: Mapping[str, list[Any]],
    changes: dict[tuple[int, int], Any],
    products: bool,
) -> bool:
    """Put into `changes` ((node, input) -> new constant) what divides `activation`; False when there is no way."""
    node = makers.get(activation)
    if node is None:
        return False

    def divided(index: int) -> bool:
        value = graph.constants.get(node.input[index]) if index < len(node.input) else None
        if value is None or value.dtype != factors.dtype or value.shape[-1:] != factors.shape:
            return False
        changes[id(node), index] = value / factors
        return True

    def before(name: str) -> bool:
        sole = len(every.get(name, ())) == 1 and name not in graph.outputs
        return sole and _collect(graph, name, factors, makers, every, changes, products)

    if node.op_type in NORMS and len(node.output) == 1:
        return divided(1) and (len(node.input) < 3 or not node.input[2] or divided(2))
    if node.op_type == "MatMul":
        return products and divided(1) and len(every[node.input[1]]) == 1
    if node.op_type == "Relu":
        return before(node.input[0])
    if node.op_type in ("Add", "Mul") and sum(i in graph.constants for i in node.input) == 1:
        index = 0 if node.input[0] in graph.constants else 1
        return divided(index) and (node.op_type == "Mul" or before(node.input[1 - index]))
    return False
