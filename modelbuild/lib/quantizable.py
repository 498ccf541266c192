"""Which nodes of a graph can be int8, which of them the user wants, and their rewriting into plain MatMul and Conv."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from modelbuild.errors import problem, suggestion
from modelbuild.lib.onnx_graph import Graph, attribute

OPS = ("MatMul", "Gemm", "Conv", "Attention")
"""Operators whose weight and input are quantized."""


class Linear(msgspec.Struct, frozen=True):
    """A matrix product of an activation [.., K] with a constant weight [K, N]."""

    node: Any
    input: str
    weight: str
    output: str


class Convolution(msgspec.Struct, frozen=True):
    """A convolution of an activation with a constant weight [out, in, ..]; `output` is what its activation makes."""

    node: Any
    input: str
    weight: str
    bias: str | None
    output: str


def name_nodes(graph: Graph) -> None:
    """Give every nameless node a name: its operator and its place in the graph."""
    taken = {n.name for n in graph.nodes}
    for place, node in enumerate(graph.nodes):
        if not node.name:
            node.name = f"{node.op_type}_{place}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def fold_views(graph: Graph) -> None:
    """Replace Identity and Transpose of constants by constants: exporters put them between a weight and its MatMul."""
    import numpy as np

    kept = []
    for node in graph.nodes:
        value = graph.constants.get(node.input[0]) if node.op_type in ("Identity", "Transpose") else None
        if value is None or node.output[0] in graph.outputs:
            kept.append(node)
        elif node.op_type == "Identity":
            graph.constants[node.output[0]] = value
        else:
            graph.constants[node.output[0]] = np.transpose(value, attribute(node, "perm"))
    graph.nodes = kept
    graph.prune()


def candidates(graph: Graph) -> list[Any]:
    """The nodes that can be quantized: those of `OPS` whose weight is a constant of floats of the right rank."""
    return [n for n in graph.nodes if n.op_type in OPS and _fits(graph, n)]


def _fits(graph: Graph, node: Any) -> bool:
    import numpy as np

    weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or weight.dtype != np.float32 or node.input[0] in graph.constants:
        return False
    match node.op_type:
        case "Conv":
            return weight.ndim >= 3 and (len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants)
        case "Gemm":
            bias = len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants
            return weight.ndim == 2 and not attribute(node, "transA", 0) and bias
        case "Attention":
            return node.domain == "com.microsoft" and _is_plain_attention(graph, node)
        case _:
            return bool(weight.ndim == 2)


def _is_plain_attention(graph: Graph, node: Any) -> bool:
    """Self-attention without past, rotation or unequal heads: what MatMul and MultiHeadAttention can express."""
    rest = list(node.input[4:])
    known = {"num_heads", "mask_filter_value", "scale", "unidirectional"}
    weight = graph.constants[node.input[1]]
    return (
        not any(rest)
        and len(node.output) == 1
        and weight.ndim == 2
        and weight.shape[1] % 3 == 0
        and len(node.input) > 2
        and node.input[2] in graph.constants
        and {a.name for a in node.attribute} <= known
    )


def require_matched(names: Sequence[str], **patterns: Sequence[str]) -> None:
    """A `ProblemError` for a pattern (by the option it is of) that matches none of the candidates' names."""
    for option, given in patterns.items():
        for pattern in given:
            if not fnmatch.filter(names, pattern):
                raise problem(
                    f"`{option}`: the pattern `{pattern}` matches no node that can be quantized",
                    nodes=_some(names),
                    hint=suggestion(pattern, names) or "patterns are `*`, `?` and `[..]` over whole node names",
                )


def choose(found: Sequence[Any], ops: Iterable[str], nodes: Sequence[str], exclude: Sequence[str]) -> list[Any]:
    """Those of the candidates `found` that have one of `ops`, match one of the patterns `nodes` (all, where there
    are none) and none of `exclude`."""
    wanted = set(ops)
    return [
        n
        for n in found
        if n.op_type in wanted
        and (not nodes or any(fnmatch.fnmatchcase(n.name, p) for p in nodes))
        and not any(fnmatch.fnmatchcase(n.name, p) for p in exclude)
    ]


def _some(names: Sequence[str], most: int = 8) -> str:
    rest = len(names) - most
    return (", ".join(names[:most]) or "none") + (f" and {rest} more" if rest > 0 else "")


def linearize(graph: Graph, chosen: Sequence[Any]) -> list[Linear | Convolution]:
    """Rewrite the chosen Gemm and Attention nodes around plain MatMul, and list what is to be quantized.

    Gemm becomes MatMul and Add; Attention becomes MatMul, Split and MultiHeadAttention, which takes the bias.
    """
    wanted = {n.name for n in chosen}
    nodes: list[Any] = []
    found: list[Linear | Convolution] = []
    readers = graph.readers()
    for node in graph.nodes:
        if node.name not in wanted:
            nodes.append(node)
        elif node.op_type == "Conv":
            found.append(_convolution(graph, node, readers))
            nodes.append(node)
        else:
            made = {"Gemm": _from_gemm, "Attention": _from_attention}.get(node.op_type, _as_is)(graph, node)
            found.append(Linear(made[0], made[0].input[0], made[0].input[1], made[0].output[0]))
            nodes.extend(made)
    graph.nodes = nodes
    graph.prune()
    return found


def _as_is(graph: Graph, node: Any) -> list[Any]:
    return [node]


def _from_gemm(graph: Graph, node: Any) -> list[Any]:
    """alpha * A @ B + beta * C as MatMul and Add, the factors and a transposition folded into the constants."""
    import numpy as np
    from onnx import helper

    weight = graph.constants[node.input[1]]
    if attribute(node, "transB", 0) or attribute(node, "alpha", 1.0) != 1.0:
        folded = (weight.T if attribute(node, "transB", 0) else weight) * np.float32(attribute(node, "alpha", 1.0))
        name = graph.add_constant(f"{node.input[1]}_{node.name}", folded)
    else:
        name = node.input[1]
    if len(node.input) < 3 or not node.input[2]:
        return [helper.make_node("MatMul", [node.input[0], name], list(node.output), name=node.name)]
    product = graph.unused_name(f"{node.name}_product")
    bias = node.input[2]
    if attribute(node, "beta", 1.0) != 1.0:
        bias = graph.add_constant(f"{bias}_{node.name}", graph.constants[bias] * np.float32(attribute(node, "beta")))
    return [
        helper.make_node("MatMul", [node.input[0], name], [product], name=node.name),
        helper.make_node("Add", [product, bias], list(node.output), name=f"{node.name}_bias"),
    ]


def _from_attention(graph: Graph, node: Any) -> list[Any]:
    """com.microsoft Attention as the product with its packed weights, and MultiHeadAttention for the rest."""
    from onnx import helper

    packed = graph.unused_name(f"{node.name}_qkv")
    parts = [graph.unused_name(f"{node.name}_{part}") for part in ("q", "k", "v")]
    mask = list(node.input[3:4])
    rest = helper.make_node(
        "MultiHeadAttention", [*parts, node.input[2], *mask], list(node.output), name=node.name, domain="com.microsoft"
    )
    rest.attribute.extend(node.attribute)
    extra = {"num_outputs": 3} if graph.opset >= 18 else {}
    return [
        helper.make_node("MatMul", [node.input[0], node.input[1]], [packed], name=f"{node.name}/qkv"),
        helper.make_node("Split", [packed], parts, name=f"{node.name}/split", axis=2, **extra),
        rest,
    ]


def _convolution(graph: Graph, node: Any, readers: dict[str, list[Any]]) -> Convolution:
    """A Conv with the Relu or Clip behind it, which disappears in the quantization of its result."""
    output = node.output[0]
    following = readers.get(output, [])
    if len(following) == 1 and following[0].op_type in ("Relu", "Clip") and output not in graph.outputs:
        output = following[0].output[0]
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    return Convolution(node, node.input[0], node.input[1], bias, output)
