"""Residual additions in a form that ONNX Runtime's CPU provider leaves alone."""

from __future__ import annotations

from typing import Any

NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


def keep_apart(model: Any) -> int:
    """Write every `Add` of two activations that feeds a layer norm as `Sum`; how many there were.

    Where shapes are known, ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization when it loads
    the model; its CPU kernel takes about 7 times as long per element as LayerNormalization's. It does not look for
    `Sum`, which computes the same bits.
    """
    constants = {t.name for t in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    made = {o: n for n in model.graph.node for o in n.output}
    written = 0
    for norm in model.graph.node:
        node = made.get(norm.input[0]) if norm.op_type in NORMS else None
        if node is not None and node.op_type == "Add" and constants.isdisjoint(node.input):
            node.op_type = "Sum"
            written += 1
    return written
