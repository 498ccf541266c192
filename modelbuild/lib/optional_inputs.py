"""Optional inputs that ONNX Runtime's fusions take for granted, written out as zeros.

dynamo leaves out a bias that is none; `fusion_skiplayernorm.py` and `onnx_model_gpt2.py` (onnxruntime 1.31) then index
past the end of a node's inputs.
"""

from __future__ import annotations

from typing import Any


def write_out(model: Any) -> int:
    """Give every LayerNormalization and Gemm with a constant weight a bias, in place; how many had none."""
    constants = {t.name: t for t in model.graph.initializer}
    added = 0
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("LayerNormalization", "Gemm") else None
        if weight is None or not weight.raw_data or (len(node.input) > 2 and node.input[2]):
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        width = weight.dims[0 if transposed else -1]
        count = 1
        for size in weight.dims:
            count *= size
        zeros = model.graph.initializer.add(name=f"{node.output[0]}/no_bias", data_type=weight.data_type)
        zeros.dims.append(width)
        zeros.raw_data = bytes(len(weight.raw_data) // count * width)
        del node.input[2:]
        node.input.append(zeros.name)
        added += 1
    return added
