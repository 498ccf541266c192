"""What TensorRT cannot compile, found in the ONNX graph before anything slow, with the node's name and a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from modelbuild.errors import Problem

Capability = tuple[int, int]
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
"""ONNX Runtime's CPU quantization: TensorRT takes QuantizeLinear and DequantizeLinear alone."""
FLOAT, UINT8, STRING, FP8 = 1, 2, 8, (17, 18, 19, 20)
"""`TensorProto` types."""
TURING: Capability = (7, 5)
FP8_FROM: Capability = (8, 9)
SHOWN = 5


def problems(model: Any, capabilities: Sequence[Capability] = (), *, plugins: bool = False) -> tuple[Problem, ...]:
    """Every reason for which `model` (a `ModelProto` with its small tensors) gives no plan for `capabilities`.

    `plugins`: operators of other domains may come from plugin libraries, and are left to TensorRT's parser.
    """
    nodes = list(_nodes(model.graph))
    found = [
        *_fused(nodes),
        *(() if plugins else _foreign(nodes)),
        *_dynamically_quantized(nodes),
        *_asymmetric(nodes, model.graph),
        *_strings(model.graph),
    ]
    if any(c < FP8_FROM for c in capabilities):
        found += _fp8(model, nodes, [c for c in capabilities if c < FP8_FROM])
    if TURING in capabilities and not found:
        found += _float_products(model, nodes)
    return tuple(found)


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def _name(node: Any) -> str:
    return str(node.name or node.output[0])


def _listed(nodes: Sequence[Any]) -> str:
    """`name (Operator)` of the first few nodes."""
    first = ", ".join(f"{_name(n)} ({n.op_type})" for n in nodes[:SHOWN])
    return first if len(nodes) <= SHOWN else f"{first} and {len(nodes) - SHOWN} more"


def _fused(nodes: Sequence[Any]) -> Iterable[Problem]:
    own = [n for n in nodes if n.domain == "com.microsoft"]
    if own:
        hint = "take `from` the exported model, not the fused one (for int8: `int8` with `runtime: tensorrt`)"
        facts = (("nodes", _listed(own)), ("domain", "com.microsoft"))
        yield Problem("TensorRT does not know ONNX Runtime's fused operators", facts=facts, hint=hint)


def _foreign(nodes: Sequence[Any]) -> Iterable[Problem]:
    foreign = [n for n in nodes if n.domain not in ("", "ai.onnx", "com.microsoft", "trt", "trt.plugins")]
    if foreign:
        facts = (("nodes", _listed(foreign)), ("domain", ", ".join(sorted({n.domain for n in foreign}))))
        hint = "name the plugin library that implements them in `plugins`, or export the model without them"
        yield Problem("the model has operators that are no part of ONNX", facts=facts, hint=hint)


def _dynamically_quantized(nodes: Sequence[Any]) -> Iterable[Problem]:
    dynamic = [n for n in nodes if n.op_type in DYNAMIC and n.domain in ("", "ai.onnx")]
    if dynamic:
        hint = "quantize it with `kind: int8, runtime: tensorrt` and `calibration`"
        yield Problem(
            "the model is quantized in a way TensorRT does not know", facts=(("nodes", _listed(dynamic)),), hint=hint
        )


def _asymmetric(nodes: Sequence[Any], graph: Any) -> Iterable[Problem]:
    """QuantizeLinear and DequantizeLinear with unsigned values, or with a zero point that is not zero."""
    from modelbuild.lib import onnx_values

    constants = onnx_values.constants(graph, small=1 << 20)
    unsigned, shifted = [], []
    for node in nodes:
        if node.op_type not in QUANTIZERS or len(node.input) < 3 or node.input[2] not in constants:
            continue
        tensor = constants[node.input[2]]
        if tensor.data_type == UINT8:
            unsigned.append(node)
        elif tensor.data_type not in FP8 and onnx_values.any_nonzero(tensor):
            shifted.append(node)
    hint = "quantize it with `kind: int8, runtime: tensorrt`, from the model that is not fused"
    if unsigned:
        facts = (("nodes", _listed(unsigned)),)
        yield Problem("TensorRT takes only signed int8, and the model is quantized to uint8", facts=facts, hint=hint)
    if shifted:
        facts = (("nodes", _listed(shifted)),)
        yield Problem(
            "TensorRT takes only symmetric int8, and the model has zero points that are not zero",
            facts=facts,
            hint=hint,
        )


def _strings(graph: Any) -> Iterable[Problem]:
    values = [v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == STRING]
    if values:
        hint = "keep text outside of the model: tokenize before it"
        yield Problem("TensorRT has no strings", facts=(("inputs and outputs", ", ".join(values)),), hint=hint)


def _fp8(model: Any, nodes: Sequence[Any], lacking: Sequence[Capability]) -> Iterable[Problem]:
    """Nodes that quantize to fp8, which GPUs have from compute capability 8.9 on."""
    from modelbuild.lib import onnx_values

    types = {name: t.data_type for name, t in onnx_values.constants(model.graph).items()}
    users = [n for n in nodes if n.op_type in QUANTIZERS and any(types.get(i) in FP8 for i in n.input)]
    if users:
        told = ", ".join(f"{major}.{minor}" for major, minor in lacking)
        yield Problem(
            f"fp8 needs compute capability 8.9 or newer, not {told}",
            facts=(("nodes", _listed(users)),),
            hint=f"take {told} out of `compute_capabilities`, or start from an int8 or fp16 model",
        )


def _float_products(model: Any, nodes: Sequence[Any]) -> Iterable[Problem]:
    """Matrix products in fp32, which TensorRT-RTX does not compile for Turing."""
    from modelbuild.lib import onnx_values

    types = onnx_values.element_types(model)
    products = [n for n in nodes if n.op_type in ("MatMul", "Gemm") and any(types.get(i) == FLOAT for i in n.input[:2])]
    if products:
        yield Problem(
            "TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5",
            facts=(("nodes", _listed(products)),),
            hint="put `kind: fp16, runtime: tensorrt` between, or take 7.5 out of `compute_capabilities`",
        )
