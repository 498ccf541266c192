"""An ONNX graph to rewrite: its nodes in order, its constants as numpy arrays, and who makes and reads each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from modelbuild.lib import onnx_files

PLAIN_TYPES = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13})
"""`TensorProto` types that numpy has too; constants of others (bfloat16, int4, float8, strings) stay as they are."""


class Graph:
    """The main graph of a model. Subgraphs of its nodes (If, Loop) are left as they are, but what they read counts.

    `constants` holds the values of initializers and of Constant nodes; the arrays are read-only views.
    """

    def __init__(self, model: Any) -> None:
        import onnx
        from onnx import numpy_helper

        shell = onnx.ModelProto()
        shell.ir_version = model.ir_version
        shell.opset_import.extend(model.opset_import)
        shell.functions.extend(model.functions)
        shell.graph.name = model.graph.name
        shell.graph.output.extend(model.graph.output)
        self.shell = shell
        self.constants: dict[str, Any] = {}
        for tensor in model.graph.initializer:
            if tensor.data_type in PLAIN_TYPES:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            else:
                shell.graph.initializer.append(tensor)
        shell.graph.sparse_initializer.extend(model.graph.sparse_initializer)
        stored = set(self.constants)
        shell.graph.input.extend(i for i in model.graph.input if i.name not in stored)
        # Copies, because the model's memory goes back only as a whole.
        self.nodes = [_copy(node) for node in model.graph.node if not self._take_constant(node)]
        self._taken = self.constants.keys() | set(self.inputs) | {t for n in self.nodes for t in (*n.input, *n.output)}

    def copy(self) -> tuple[Graph, dict[int, Any]]:
        """A graph with nodes of its own and the same constants; and `id` of each node -> its copy."""
        made = object.__new__(Graph)
        made.shell = type(self.shell)()
        made.shell.CopyFrom(self.shell)
        made.constants, made.nodes, made._taken = dict(self.constants), [_copy(n) for n in self.nodes], set(self._taken)
        return made, {id(mine): its for mine, its in zip(self.nodes, made.nodes, strict=True)}

    def _take_constant(self, node: Any) -> bool:
        """Keep a Constant node's tensor among the constants; whether that was one."""
        import numpy as np
        from onnx import helper, numpy_helper

        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
            return False
        (attribute,) = node.attribute
        if attribute.name == "value" and attribute.t.data_type in PLAIN_TYPES:
            self.constants[node.output[0]] = numpy_helper.to_array(attribute.t)
        elif attribute.name in ("value_float", "value_floats"):
            self.constants[node.output[0]] = np.asarray(helper.get_attribute_value(attribute), dtype=np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            self.constants[node.output[0]] = np.asarray(helper.get_attribute_value(attribute), dtype=np.int64)
        else:
            return False
        return True

    @property
    def inputs(self) -> list[str]:
        return [i.name for i in self.shell.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.shell.graph.output]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operator set."""
        return onnx_files.opsets(self.shell).get("ai.onnx", 0)

    def makers(self) -> dict[str, Any]:
        """Tensor name -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    def readers(self) -> dict[str, list[Any]]:
        """Tensor name -> the nodes that read it, once per input; subgraphs count for their node."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in reads(node):
                found.setdefault(name, []).append(node)
        return found

    def unused_name(self, wish: str) -> str:
        """`wish`, or with a number behind it where that name was given before."""
        name, number = wish, 0
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name

    def add_constant(self, wish: str, value: Any) -> str:
        """Put a constant into the graph; its name."""
        name = self.unused_name(wish)
        self.constants[name] = value
        return name

    def require_domain(self, domain: str, version: int = 1) -> None:
        """Import an operator domain."""
        if all(o.domain != domain for o in self.shell.opset_import):
            self.shell.opset_import.add(domain=domain, version=version)

    def prune(self) -> None:
        """Drop nodes whose results nothing reads, and constants that are left over."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(reads(node))
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def model(self, constants: Iterable[str] | None = None) -> Any:
        """A `ModelProto` of the graph with its constants, or with only those named."""
        import onnx
        from onnx import numpy_helper

        made = onnx.ModelProto()
        made.CopyFrom(self.shell)
        made.graph.node.extend(self.nodes)
        for name in self.constants if constants is None else constants:
            made.graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return made


def _copy(node: Any) -> Any:
    copied = type(node)()
    copied.CopyFrom(node)
    return copied


def reads(node: Any) -> Iterator[str]:
    """The tensors a node reads, those of its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            for inner in graph.node:
                yield from reads(inner)
            yield from (o.name for o in graph.output)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default` where it has none."""
    from onnx import helper

    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default
