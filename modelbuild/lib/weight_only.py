"""Weights in 4 or 8 bits, activations in floats: by ONNX Runtime's own quantizer, into its MatMulNBits operators."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np

DONE = frozenset({"MatMulNBits", "GatherBlockQuantized"})


def split_gemms(model: Any) -> int:
    """Write each plain Gemm with a constant weight as MatMul and Add, which is what the quantizer looks for.

    Returns how many. Gemms that transpose their input, scale, or have no constant weight stay as they are.
    """
    from onnx import helper, numpy_helper

    weights = {t.name: t for t in model.graph.initializer}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    nodes: list[Any] = []
    count = 0
    for node in model.graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in weights or not plain:
            nodes.append(node)
            continue
        count += 1
        weight = node.input[1]
        if given.get("transB", 0):
            turned = f"{weight}/turned"
            if turned not in weights:
                values = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
                weights[turned] = numpy_helper.from_array(values, turned)
                model.graph.initializer.append(weights[turned])
            uses[weight] -= 1
            weight = turned
        biased = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}/product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}/bias"))
    kept = [t for t in model.graph.initializer if uses.get(t.name, 1) > 0]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def quantize(
    model: Any,
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
    accuracy_level: int | None,
    embeddings: bool,
    exclude: Collection[str],
) -> Any:
    """The model with its constant weights in blocks of `bits`, by ONNX Runtime's `MatMulNBitsQuantizer`.

    Weights of products [K, N] have a scale (and a zero point) per block of K; embedding tables, with `embeddings`, per
    block of a row. Its k-quant is left out: on MiniLM it was no better, and it fails on some shapes (1.31).
    """
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    operators = ("MatMul", "Gather") if embeddings else ("MatMul",)
    quantizer = ort.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block_size,
        is_symmetric=symmetric,
        accuracy_level=accuracy_level,
        nodes_to_exclude=sorted(exclude),
        op_types_to_quantize=operators,
    )
    quantizer.process()
    return quantizer.model.model


def quantized(model: Any) -> dict[str, int]:
    """How many operators of each kind hold quantized weights."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in DONE:
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found
