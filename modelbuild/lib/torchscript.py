"""The TorchScript exporter, traced without the weights: the graph comes out small, the weights join it when written.

Stock export folds and serializes the weights several times over (MiniLM: 1.7 CPU-s and 330 MB over the model; this way
0.6 CPU-s and 150 MB). What its constant folding would have done to a graph without weights is done here instead.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from modelbuild.lib.export_graph import Graph
from modelbuild.lib.onnx_weights import Weight
from modelbuild.lib.positional import PREFIX


class TorchWeight(msgspec.Struct, frozen=True):
    """A parameter, with its axes permuted as the graph wants them."""

    tensor: Any
    axes: tuple[int, ...]

    @property
    def suffix(self) -> str:
        """What a permuted weight's name ends in."""
        return ".T" if len(self.axes) == 2 else "." + "".join(str(a) for a in self.axes)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[a] for a in self.axes)

    @property
    def nbytes(self) -> int:
        return int(self.tensor.nbytes)

    def array(self) -> Any:
        return self.tensor.permute(self.axes).contiguous().numpy()


def trace(source: Graph, opset: int) -> tuple[Any, dict[str, Weight]]:
    """The graph (a `ModelProto`) traced on its sample, and its weights by initializer name.

    Weights keep the parameters' names; those the graph uses transposed get `.T` appended.
    """
    import onnx
    import torch

    inputs = [port.name for port in source.inputs]
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer warnings, and the exporter's deprecation
        torch.onnx.export(
            source.module,
            tuple(torch.from_numpy(v) for v in source.sample.values()),
            file,
            dynamo=False,
            opset_version=opset,
            export_params=False,
            do_constant_folding=False,
            input_names=inputs,
            output_names=[port.name for port in source.outputs],
            dynamic_axes={port.name: dict(port.axes) for port in (*source.inputs, *source.outputs)},
        )
    graph = onnx.load_from_string(file.getvalue())
    return graph, _graft(graph.graph, _tensors(source.module), set(inputs))


def _tensors(module: Any) -> dict[str, Any]:
    """Parameters and buffers by name, those that are no part of a checkpoint among them (rotary frequencies)."""
    found = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in found.items()}


def _graft(graph: Any, state: Mapping[str, Any], inputs: set[str]) -> dict[str, Weight]:
    """Turn the graph's weight inputs into references to initializers yet to be written; returns those.

    A transposed weight becomes an initializer of its own, and constants are folded through `Unsqueeze`: ONNX
    Runtime's fusions look for the graph that is left.
    """
    kept = [i for i in graph.input if i.name in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    origin = {name: name for name in state}  # equal weights are one to the tracer, and `Identity` of it elsewhere
    transposed: dict[str, str] = {}
    weights: dict[str, Weight] = {}
    nodes = []
    for node in graph.node:
        source = origin.get(node.input[0]) if node.input else None
        if source is not None and node.op_type == "Identity":
            origin[node.output[0]] = source
            continue
        if source is not None and node.op_type == "Transpose":
            weight = _transposed(state[source], node)
            name = transposed[node.output[0]] = source.removeprefix(PREFIX) + weight.suffix
            weights[name] = weight
            continue
        for i, name in enumerate(node.input):
            if name in transposed:
                node.input[i] = transposed[name]
            elif name in origin:
                tensor = state[origin[name]]
                node.input[i] = origin[name].removeprefix(PREFIX)
                weights[node.input[i]] = TorchWeight(tensor, tuple(range(tensor.ndim)))
        nodes.append(node)
    nodes = _fold(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    return weights


def _transposed(tensor: Any, node: Any) -> TorchWeight:
    """The weight as a `Transpose` node would give it; without `perm` that reverses the axes."""
    axes = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), tuple(reversed(range(tensor.ndim))))
    return TorchWeight(tensor, axes)


def _fold(nodes: list[Any]) -> list[Any]:
    """Fold `Unsqueeze` of constants, and leave out constants that nothing reads any more."""
    import numpy as np
    from onnx import helper, numpy_helper

    constants: dict[str, Any] = {}
    folded = []
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Unsqueeze" and all(name in constants for name in node.input):
            value, axes = (constants[name] for name in node.input)
            result = constants[node.output[0]] = np.expand_dims(value, tuple(int(a) for a in axes))
            node = helper.make_node(
                "Constant", [], list(node.output), name=node.name, value=numpy_helper.from_array(result)
            )
        folded.append(node)
    used = {name for node in folded for name in node.input}
    return [n for n in folded if n.op_type != "Constant" or n.output[0] in used]
