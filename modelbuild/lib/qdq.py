"""Writing a static int8 graph: QuantizeLinear and DequantizeLinear around matrix products and convolutions.

Only the products' inputs are quantized (and, for convolutions, their results, which the kernels need): the residual
stream stays in floats. Every product reads its own activation's codes, so what else reads the activation is untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.lib.absorption import absorb
from modelbuild.lib.calibration import Observed
from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.quantizable import Convolution, Linear
from modelbuild.lib.rounding import Bits, Grid, activation_grid, weight_grid


class Scheme(msgspec.Struct, frozen=True):
    """How numbers become 8 bits."""

    activations: Bits = "uint8"
    weights: Bits = "int8"
    activation_symmetric: bool = False
    weight_symmetric: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    outputs: bool = False
    correct_bias: bool = True


class Plan(msgspec.Struct, frozen=True):
    """What is written for one activation: its range after smoothing, and the factors s [K] (None: not smoothed).

    `absorbed`: what makes the activation divides by s already.
    """

    low: float
    high: float
    factors: Any = None
    absorbed: bool = False


def write(
    graph: Graph,
    found: Sequence[Linear | Convolution],
    plans: Mapping[str, Plan],
    observed: Mapping[str, Observed],
    scheme: Scheme,
) -> None:
    """Quantize `found` in place. `plans` has every input, and the outputs that are quantized too."""
    plans = {name: _absorbed(graph, name, plan, found, scheme) for name, plan in plans.items()}
    _Writer(graph, plans, observed, scheme).write(found)


def _absorbed(graph: Graph, name: str, plan: Plan, found: Sequence[Linear | Convolution], scheme: Scheme) -> Plan:
    """The plan, with its division made part of the constants before where that is possible."""
    if plan.factors is None or scheme.outputs:  # the ranges of results were observed undivided
        return plan
    nodes = [each.node for each in found if each.input == name]
    absorbed = absorb(graph, name, plan.factors, nodes, products=scheme.per_channel)
    return msgspec.structs.replace(plan, absorbed=absorbed)


class _Writer:
    """The state of one rewriting: nodes to put before and behind others, and what was written already."""

    def __init__(
        self, graph: Graph, plans: Mapping[str, Plan], observed: Mapping[str, Observed], scheme: Scheme
    ) -> None:
        self.graph, self.plans, self.observed, self.scheme = graph, plans, observed, scheme
        self.grids = {name: self._grid(plan) for name, plan in plans.items()}
        self.codes: dict[str, str] = {}
        self.weights: dict[tuple[str, str], tuple[str, str, str, Any, Grid]] = {}
        self.before: dict[int, list[Any]] = {}
        self.readers = graph.readers()

    def _grid(self, plan: Plan) -> Grid:
        return activation_grid(plan.low, plan.high, self.scheme.activations, self.scheme.activation_symmetric)

    def write(self, found: Sequence[Linear | Convolution]) -> None:
        wanted = {id(each.node): each for each in found}
        behind = {each.output: each for each in found if each.output in self.plans}
        nodes: list[Any] = []
        for node in self.graph.nodes:
            each = wanted.get(id(node))
            if isinstance(each, Linear):
                nodes += self._linear(each)
            elif isinstance(each, Convolution):
                nodes += self._convolution(each)
            else:
                nodes.append(node)
            for output in node.output:
                if output in behind:
                    nodes += self._behind(nodes[-1], output)
        self.graph.nodes = nodes
        self.graph.prune()

    def _activation(self, name: str) -> tuple[list[Any], str]:
        """(nodes to put before, the dequantized activation) of an input; written once for all products that read it."""
        from onnx import helper

        if name in self.codes:
            return [], self.codes[name]
        graph, plan, nodes, source = self.graph, self.plans[name], [], name
        if plan.factors is not None and not plan.absorbed:
            inverse = graph.add_constant(f"{name}_smoothing", (1 / plan.factors).astype("float32"))
            source = graph.unused_name(f"{name}_smoothed")
            nodes.append(helper.make_node("Mul", [name, inverse], [source], name=f"{source}/Mul"))
        pair, result = self._pair(name, source)
        self.codes[name] = result
        return nodes + pair, result

    def _pair(self, name: str, source: str) -> tuple[list[Any], str]:
        """QuantizeLinear and DequantizeLinear of `source` on the grid of the activation `name`."""
        from onnx import helper

        graph, grid = self.graph, self.grids[name]
        scale = graph.add_constant(f"{name}_scale", grid.scale)
        zero = graph.add_constant(f"{name}_zero_point", grid.zero_point)
        codes, floats = graph.unused_name(f"{name}_quantized"), graph.unused_name(f"{name}_dequantized")
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [codes], name=f"{codes}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [codes, scale, zero], [floats], name=f"{floats}/DequantizeLinear"),
        ], floats

    def _behind(self, node: Any, output: str) -> list[Any]:
        """Quantize a result for all its readers; `node` (the last that was written) makes it."""
        raw = self.graph.unused_name(f"{output}_float")
        node.output[list(node.output).index(output)] = raw
        pair, _ = self._pair(output, raw)
        pair[1].output[0] = output
        self.codes[output] = output
        return pair

    def _linear(self, linear: Linear) -> list[Any]:
        from onnx import helper

        nodes, activation = self._activation(linear.input)
        plan = self.plans[linear.input]
        weight, codes, grid = self._weight(linear, plan.factors)
        floats = self.graph.unused_name(f"{weight[0]}_dequantized")
        axis = {"axis": 1} if grid.scale.ndim else {}
        if self.scheme.correct_bias:
            self._correct(linear, plan, codes, grid)
        return [
            *nodes,
            helper.make_node("DequantizeLinear", list(weight), [floats], name=f"{floats}/DequantizeLinear", **axis),
            helper.make_node("MatMul", [activation, floats], [linear.output], name=linear.node.name),
        ]

    def _weight(self, linear: Linear, factors: Any) -> tuple[tuple[str, str, str], Any, Grid]:
        """((codes, scale, zero point) by name, the codes, their grid); stored once per weight and smoothing."""
        key = (linear.weight, "" if factors is None else factors.tobytes().hex())
        if key not in self.weights:
            value = self.graph.constants[linear.weight]
            value = value if factors is None else value * factors[:, None]
            scheme = self.scheme
            grid = weight_grid(value, scheme.weights, scheme.weight_symmetric, scheme.per_channel, scheme.reduce_range)
            codes = grid.rounded(value)
            add, name = self.graph.add_constant, linear.weight
            stored = add(f"{name}_quantized", codes), add(f"{name}_scale", grid.scale)
            self.weights[key] = (*stored, add(f"{name}_zero_point", grid.zero_point), codes, grid)
        *names, codes, grid = self.weights[key]
        return (names[0], names[1], names[2]), codes, grid

    def _correct(self, linear: Linear, plan: Plan, codes: Any, grid: Grid) -> None:
        """Take the mean error of the product, over the sampled rows, out of the bias behind it (where there is one).

        Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019.
        """
        import numpy as np

        rows, place = self.observed[linear.input].rows, self._bias(linear.output)
        if place is None or rows is None or not len(rows):
            return
        reader, index = place
        bias = self.graph.constants[reader.input[index]]
        inner = self.grids[linear.input]
        smoothed = rows if plan.factors is None else rows / plan.factors
        seen = inner.floats(inner.rounded(smoothed)).mean(axis=0, dtype=np.float64)
        exact = rows.mean(axis=0, dtype=np.float64) @ self.graph.constants[linear.weight]
        error = (exact - seen @ grid.floats(codes)).astype(np.float32)
        reader.input[index] = self.graph.add_constant(
            f"{reader.input[index]}_corrected", bias + error.reshape(bias.shape)
        )

    def _bias(self, output: str) -> tuple[Any, int] | None:
        """(node, index of the input) of the bias that is added to a product, if that is all the product is used for."""
        readers = self.readers.get(output, [])
        if len(readers) != 1 or output in self.graph.outputs:
            return None
        (reader,) = readers
        if reader.op_type in ("Add", "BiasGelu", "FastGelu"):
            index = 1 if len(reader.input) > 1 and reader.input[0] == output else 0
        elif reader.op_type == "SkipLayerNormalization" and len(reader.input) > 4:
            index = 4
        elif reader.op_type == "Split":
            parts = self.readers.get(reader.output[0], [])
            same = len(parts) == 1 and list(parts[0].input[:3]) == list(reader.output)
            if not same or parts[0].op_type != "MultiHeadAttention" or len(parts[0].input) < 4:
                return None
            reader, index = parts[0], 3
        else:
            return None
        bias = self.graph.constants.get(reader.input[index]) if len(reader.input) > index else None
        return (reader, index) if bias is not None and bias.size == max(bias.shape, default=0) > 1 else None

    def _convolution(self, conv: Convolution) -> list[Any]:
        """A Conv on codes: its bias becomes int32 on the product of the two scales, which its kernel adds as it is."""
        import numpy as np
        from onnx import helper

        nodes, activation = self._activation(conv.input)
        graph, scheme, name = self.graph, self.scheme, conv.weight
        value = graph.constants[name]
        last = np.moveaxis(value, 0, -1)
        grid = weight_grid(last, scheme.weights, scheme.weight_symmetric, scheme.per_channel, scheme.reduce_range)
        codes = np.ascontiguousarray(np.moveaxis(grid.rounded(last), -1, 0))
        axis = {"axis": 0} if grid.scale.ndim else {}
        stored = [
            graph.add_constant(f"{name}_quantized", codes),
            graph.add_constant(f"{name}_scale", grid.scale),
            graph.add_constant(f"{name}_zero_point", grid.zero_point),
        ]
        inputs = [activation, graph.unused_name(f"{name}_dequantized")]
        nodes.append(
            helper.make_node("DequantizeLinear", stored, [inputs[1]], name=f"{inputs[1]}/DequantizeLinear", **axis)
        )
        if conv.bias is not None:
            scale = (self.grids[conv.input].scale * grid.scale).astype(np.float32)
            whole = np.rint(graph.constants[conv.bias].astype(np.float64) / scale)
            stored = [
                graph.add_constant(f"{conv.bias}_quantized", np.clip(whole, -(2**31), 2**31 - 1).astype(np.int32)),
                graph.add_constant(f"{conv.bias}_scale", scale),
                graph.add_constant(f"{conv.bias}_zero_point", np.zeros(scale.shape, dtype=np.int32)),
            ]
            inputs.append(graph.unused_name(f"{conv.bias}_dequantized"))
            nodes.append(
                helper.make_node("DequantizeLinear", stored, [inputs[2]], name=f"{inputs[2]}/DequantizeLinear", **axis)
            )
        conv.node.input[:] = inputs
        return [*nodes, conv.node]
