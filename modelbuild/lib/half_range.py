"""Which nodes must stay in float32: those whose values, on real data, leave float16's range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from modelbuild.lib import calibration, onnx_values
from modelbuild.lib.calibration import Batch
from modelbuild.lib.half import FLOAT, LARGEST, MASK
from modelbuild.lib.onnx_graph import Graph


class Large(msgspec.Struct, frozen=True):
    """Nodes to keep, by name, each with the largest magnitude that it makes or reads."""

    nodes: dict[str, float]


def observed(model: Any, batches: Iterable[Batch], step: Callable[[int], None]) -> dict[str, float]:
    """Activation -> the largest magnitude of its finite values over all batches, masks' stand-ins for infinity left
    out. `model` is the float32 `ModelProto`; `step` hears how many samples are done."""
    import numpy as np

    types = onnx_values.element_types(model)
    graph = Graph(model)
    names = [o for n in graph.nodes for o in n.output if o and types.get(o) == FLOAT and o not in graph.constants]
    probe = calibration.Probe(graph, dict.fromkeys(names))
    largest = np.zeros(len(names), dtype=np.float64)
    done = 0
    for count, feeds in batches:
        got = np.asarray(probe.reduced(feeds, 0, 1), dtype=np.float64).reshape(len(names), 2)
        magnitude = np.abs(got)
        magnitude[~(magnitude < MASK)] = 0.0
        largest = np.maximum(largest, magnitude.max(axis=1))
        done += count
        step(done)
    return dict(zip(names, largest.tolist(), strict=True))


def large(model: Any, magnitudes: Mapping[str, float], headroom: float) -> Large:
    """The nodes that make or read a value above float16's largest, divided by `headroom` for data not yet seen.

    Constants count too. A node that only reads such a value needs it in float32 as well.
    """
    import numpy as np
    from onnx import numpy_helper

    limit = LARGEST / headroom
    sizes = {name: size for name, size in magnitudes.items() if size > limit}
    for name, tensor in onnx_values.constants(model.graph).items():
        if tensor.data_type == FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            size = float(values[values < MASK].max(initial=0.0))
            if size > LARGEST:
                sizes[name] = size
    found = {}
    for node in model.graph.node:
        touched = [sizes[n] for n in (*node.input, *node.output) if n in sizes]
        if touched and node.op_type != "Constant":
            found[node.name] = max(touched)
    return Large(found)
