"""Writing a dynamic int8 graph: weights are int8, and each activation's range is taken anew at every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.quantizable import Linear
from modelbuild.lib.rounding import Bits, weight_grid


def write(
    graph: Graph, found: Sequence[Linear], *, weights: Bits, symmetric: bool, per_channel: bool, reduce_range: bool
) -> None:
    """Replace each product by DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which ONNX Runtime fuses at load.

    Products that read the same activation share its DynamicQuantizeLinear.
    """
    from onnx import TensorProto, helper

    wanted = {id(each.node): each for each in found}
    activations: dict[str, list[str]] = {}
    stored: dict[str, list[str]] = {}
    nodes: list[Any] = []
    for node in graph.nodes:
        linear = wanted.get(id(node))
        if linear is None:
            nodes.append(node)
            continue
        if linear.input not in activations:
            names = [graph.unused_name(f"{linear.input}_{part}") for part in ("quantized", "scale", "zero_point")]
            activations[linear.input] = names
            name = f"{names[0]}/DynamicQuantizeLinear"
            nodes.append(helper.make_node("DynamicQuantizeLinear", [linear.input], names, name=name))
        codes, scale, zero = activations[linear.input]
        if linear.weight not in stored:
            value = graph.constants[linear.weight]
            grid = weight_grid(value, weights, symmetric, per_channel, reduce_range)
            parts = {"quantized": grid.rounded(value), "scale": grid.scale, "zero_point": grid.zero_point}
            stored[linear.weight] = [graph.add_constant(f"{linear.weight}_{p}", v) for p, v in parts.items()]
        weight, weight_scale, weight_zero = stored[linear.weight]
        whole, floats, factor = (graph.unused_name(f"{linear.output}_{p}") for p in ("int32", "float", "scale"))
        nodes += [
            helper.make_node("MatMulInteger", [codes, weight, zero, weight_zero], [whole], name=linear.node.name),
            helper.make_node("Cast", [whole], [floats], name=f"{linear.node.name}/cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, weight_scale], [factor], name=f"{linear.node.name}/scale"),
            helper.make_node("Mul", [floats, factor], [linear.output], name=f"{linear.node.name}/mul"),
        ]
    graph.nodes = nodes
    graph.prune()
