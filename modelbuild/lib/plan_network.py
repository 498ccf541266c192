"""An ONNX model as TensorRT parsed it: the network, its inputs and outputs, and its layers with their precisions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.artifact import Component, Tensor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import plan_log
from modelbuild.lib.plan_log import Heard

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8", "FP8": "float8_e4m3fn", "INT4": "int4", "FP4": "float4_e2m1fn",
    "E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""TensorRT's data types by numpy's (and ml_dtypes') names."""
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_INPUT", "MOE")
"""Layers that do the work, whose precision is what a plan is judged by."""
PASSED = ("SHUFFLE", "CONSTANT", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE", "CONCATENATION")
_PARSER_ERROR = re.compile(
    r"In node (?P<index>-?\d+) with name: (?P<name>.*?) and operator: (?P<op>\S*) \((?P<where>\w+)\): "
    r"(?P<code>\w+): (?P<text>.*)"
)
_HINTS = {
    "Plugin not found": "name the library with the operator in `plugins`, or export the model without it",
    "zero point is not supported": "quantize it with `kind: int8, runtime: tensorrt`",
    "Failed to import initializer": "the weights beside the model are missing or damaged: build the model again",
    "Failed to convert ONNX da": "TensorRT has no such data type: export the model without it",
}


class Layer(msgspec.Struct, frozen=True):
    """A layer before TensorRT fuses it: its name (the ONNX node's), its type, the precision it computes in."""

    name: str
    type: str
    precision: str
    shape: tuple[int, ...]


def parse(path: Path, heard: Heard, *, plugins: Sequence[Path] = ()) -> tuple[Any, Any, Any]:
    """(builder, network, parser) of a model file, strongly typed; a `ProblemError` with the node that does not parse.

    Strong typing means that every layer computes in the types of the graph, as TensorRT 11 always does.
    """
    from polygraphy.backend.trt import LoadPlugins, NetworkFromOnnxPath

    loader: Any = NetworkFromOnnxPath(str(path), strongly_typed=True)
    if plugins:
        loader = LoadPlugins([str(p) for p in plugins], loader)
    try:
        builder, network, parser = loader()
    except Exception as e:
        if plan_log.failure(heard, e) is None:
            raise
        raise ProblemError(*_unparsed(heard, e)) from e
    return builder, network, parser


def _unparsed(heard: Heard, error: Exception) -> list[Problem]:
    """A problem for each node that the parser refused."""
    found = [m for text in heard.errors if (m := _PARSER_ERROR.search(text))]
    if not found:
        return [Problem("TensorRT cannot read the model", facts=(("cause", heard.cause(error)),))]
    return [_refused(**m.groupdict()) for m in found]


def _refused(index: str, name: str, op: str, where: str, code: str, text: str) -> Problem:
    text = text.removeprefix("Assertion failed: ").strip()
    hint = next((hint for mark, hint in _HINTS.items() if mark in text), None)
    if not op:
        return Problem("TensorRT cannot read the model", facts=(("cause", text),), hint=hint)
    facts: tuple[tuple[str, str], ...] = (("node", f"{name or '(unnamed)'} (number {index})"), ("operator", op))
    if text == "false":
        title, hint = f"TensorRT has no operator `{op}`", "export the model without it, or keep it outside of the plan"
    else:
        title, facts = f"TensorRT does not take the node `{name or index}`", (*facts, ("cause", f"{code}: {text}"))
    return Problem(title, facts=facts, hint=hint)


def component(network: Any, source: Component, file: str) -> Component:
    """What the descriptor says of the plan: types and shapes from the network, dimensions' names from the model."""
    known = {t.name: t for t in (*source.inputs, *source.outputs)}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return Component(file, _tensors(inputs, known), _tensors(outputs, known))


def _tensors(tensors: Sequence[Any], known: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(_tensor(t, known.get(t.name)) for t in tensors)


def _tensor(tensor: Any, known: Tensor | None) -> Tensor:
    shape: list[int | str] = []
    for place, size in enumerate(tuple(tensor.shape)):
        named = known.shape[place] if known is not None and place < len(known.shape) else f"{tensor.name}_{place}"
        shape.append(named if size < 0 else int(size))
    return Tensor(tensor.name, dtype(tensor.dtype), tuple(shape))


def dtype(of: Any) -> str:
    """A TensorRT data type by its numpy name."""
    name = str(of.name)
    return DTYPES.get(name, name.lower())


def layers(network: Any) -> tuple[Layer, ...]:
    """Every layer. A product of dequantized values computes in their quantized type: TensorRT fuses the two."""
    all_layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in all_layers for i in range(layer.num_outputs)}
    return tuple(_layer(layer, makers) for layer in all_layers)


def _layer(layer: Any, makers: Mapping[str, Any]) -> Layer:
    kind, output = layer.type.name, layer.get_output(0)
    precision = dtype(output.dtype) if output is not None else ""
    if kind in PRODUCTS:
        operands = [layer.get_input(i) for i in range(min(2, layer.num_inputs))]
        quantized = [_quantized(t, makers) for t in operands if t is not None]
        if quantized and all(quantized):
            precision = quantized[0] or precision
        elif any(quantized):
            precision = f"{precision} with {next(q for q in quantized if q)} weights"
    return Layer(layer.name, kind, precision, tuple(int(d) for d in tuple(output.shape)) if output is not None else ())


def _quantized(tensor: Any, makers: Mapping[str, Any]) -> str | None:
    """The type that a tensor was dequantized from, seen through layers that only move or scale values; None for none.

    SmoothQuant's factors are multiplied in before the quantization, so none stands between.
    """
    for _ in range(8):
        maker = makers.get(tensor.name)
        if maker is None:
            return None
        if maker.type.name == "DEQUANTIZE":
            return dtype(maker.get_input(0).dtype)
        if maker.type.name not in PASSED or maker.num_inputs < 1 or maker.get_input(0) is None:
            return None
        tensor = maker.get_input(0)
    return None


def summary(all_layers: Sequence[Layer]) -> dict[str, dict[str, int]]:
    """Layer type -> precision -> how many, of the layers that do the work (`PRODUCTS`)."""
    counts = Counter((each.type.lower(), each.precision) for each in all_layers if each.type in PRODUCTS)
    found: dict[str, dict[str, int]] = {}
    for (kind, precision), count in sorted(counts.items()):
        found.setdefault(kind, {})[precision] = count
    return found
