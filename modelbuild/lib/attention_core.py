"""Fuses what every attention has in common, softmax(Q Kᵀ · scale + bias) V, whatever comes before and after it.

ONNX Runtime's own patterns reach from the projections to the output and are written for one architecture and exporter
each. The core is the same four to six nodes in all, eager in transformers 5 and in either exporter's graphs: it becomes
one `com.microsoft::MultiHeadAttention` (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md),
to which rotary embeddings, repeated heads, relative positions and a key-value cache are just how its inputs were made.
"""

from __future__ import annotations

from typing import Any

import msgspec

DOMAIN = "com.microsoft"
BSHD = (0, 2, 1, 3)
"""Between [batch, sequence, heads, size] and [batch, heads, sequence, size], both ways."""


class Core(msgspec.Struct, frozen=True):
    """The nodes and names of one attention: the scores' MatMul, the sum with V, and what lies between."""

    scores: Any
    weighted: Any
    scale: float
    biases: tuple[str, ...]


def fuse(model: Any, heads: int) -> int:
    """Replace every attention core in the main graph by one operator, in place; how many were replaced.

    `heads` is the number of query heads where the graph does not tell.
    """
    from onnx import helper

    graph = _Graph(model)
    found = {id(core.weighted): core for node in model.graph.node if (core := graph.core(node))}
    if not found:
        return 0
    nodes: list[Any] = []
    sums: dict[tuple[str, ...], str] = {}
    for node in model.graph.node:
        if core := found.get(id(node)):
            nodes += graph.operator(core, graph.heads(core) or heads, sums)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(_live(nodes, {o.name for o in model.graph.output}))
    if not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(found)


class _Graph:
    """Who makes and who reads each value of a graph."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.made = {o: n for n in model.graph.node for o in n.output}
        self.readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.graph.output}
        small = {t.name: t for t in model.graph.initializer if not t.dims or list(t.dims) == [1]}
        self.constants = {t.name: t for t in model.graph.initializer}
        self.numbers = {name: float(numpy_helper.to_array(t).reshape(-1)[0]) for name, t in small.items()}

    def core(self, softmax: Any) -> Core | None:
        """The attention around a Softmax over the last axis, or None when it is another's."""
        if softmax.op_type != "Softmax" or _attribute(softmax, "axis", -1) not in (-1, 3):
            return None
        weighted = self._only_reader(softmax)
        if weighted is None or weighted.op_type != "MatMul" or weighted.input[0] != softmax.output[0]:
            return None
        value, biases = softmax.input[0], list[str]()
        while (node := self.made.get(value)) is not None and node.op_type == "Add":
            scored = [i for i in node.input if self._leads_to_scores(i)]
            if len(scored) != 1 or self._only_reader(node) is None:
                return None
            value = scored[0]
            bias = node.input[1] if node.input[0] == value else node.input[0]
            biases += [] if self._is_zero(bias) else [bias]
        node, scale = self.made.get(value), 1.0
        if node is not None and node.op_type in ("Mul", "Div") and node.input[1] in self.numbers:
            factor = self.numbers[node.input[1]]
            scale = factor if node.op_type == "Mul" else 1 / factor
            node = self.made.get(node.input[0])
        if node is None or node.op_type != "MatMul" or not self._transposed_keys(node):
            return None
        return Core(node, weighted, scale, tuple(sorted(biases)))

    def heads(self, core: Core) -> int:
        """Into how many heads the queries were split, found above them (rotary embeddings lie between); 0 if not."""
        from modelbuild.lib import fusion

        frontier, seen = [core.scores.input[0]], set[str]()
        while frontier and len(seen) < 24:
            name = frontier.pop(0)
            node = self.made.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op_type == "Reshape":
                pair = fusion.heads_of(node, self.constants, self.made)
                if pair:
                    return pair[0]
            frontier += node.input[:2]
        return 0

    def operator(self, core: Core, heads: int, sums: dict[tuple[str, ...], str]) -> list[Any]:
        """The nodes that stand for the core; `sums` shares the sum of two biases between layers."""
        from onnx import helper

        nodes: list[Any] = []
        query = self._three(core.scores.input[0], core, nodes)
        keys, values = self.made[core.scores.input[1]], core.weighted.input[1]
        perm = _perm(keys)
        source, order = keys.input[0], (perm[0], perm[1], perm[3], perm[2])
        made = self.made.get(values)
        if order == BSHD and made is not None and _perm(made) == BSHD:
            key, value = self._flat(source, core, nodes), self._flat(made.input[0], core, nodes)
        else:
            key, value = source, values
            if order != (0, 1, 2, 3):
                key = f"{core.scores.name or core.scores.output[0]}/keys"
                nodes.append(helper.make_node("Transpose", [source], [key], name=key, perm=order))
        bias = self._bias(core.biases, sums, nodes)
        name = f"{core.weighted.name or core.weighted.output[0]}/attention"
        inputs = [query, key, value, *(["", "", bias] if bias else [])]
        nodes.append(
            helper.make_node(
                "MultiHeadAttention", inputs, [name], name=name, domain=DOMAIN, num_heads=heads, scale=core.scale
            )
        )
        return nodes + self._results(core, name, heads)

    def _results(self, core: Core, attention: str, heads: int) -> list[Any]:
        """The core's result in the form its reader wants it; the attention's own is [batch, sequence, heads · size]."""
        from onnx import helper

        shape, apart = f"{attention}/shape", f"{attention}/apart"
        reader = self._only_reader(core.weighted)
        back = reader is not None and _perm(reader) == BSHD
        result = reader.output[0] if back and reader is not None else core.weighted.output[0]
        nodes = [
            helper.make_node("Constant", [], [shape], name=shape, value_ints=[0, 0, heads, -1]),
            helper.make_node("Reshape", [attention, shape], [f"{apart}" if not back else result], name=apart),
        ]
        if back and reader is not None:
            reader.output[0] = f"{result}/unused"
        else:
            nodes.append(helper.make_node("Transpose", [apart], [result], name=f"{apart}/back", perm=BSHD))
        return nodes

    def _three(self, name: str, core: Core, nodes: list[Any]) -> str:
        """A value [batch, heads, sequence, size] as [batch, sequence, heads · size]."""
        from onnx import helper

        node = self.made.get(name)
        if node is not None and _perm(node) == BSHD:
            return self._flat(node.input[0], core, nodes)
        turned = f"{core.scores.name or core.scores.output[0]}/queries"
        nodes.append(helper.make_node("Transpose", [name], [turned], name=turned, perm=BSHD))
        return self._flat(turned, core, nodes)

    def _flat(self, name: str, core: Core, nodes: list[Any]) -> str:
        """A value [batch, sequence, heads, size] as [batch, sequence, heads · size]."""
        from onnx import helper

        flat = f"{core.weighted.name or core.weighted.output[0]}/{name}/flat"
        nodes.append(helper.make_node("Constant", [], [f"{flat}/shape"], name=f"{flat}/shape", value_ints=[0, 0, -1]))
        nodes.append(helper.make_node("Reshape", [name, f"{flat}/shape"], [flat], name=flat))
        return flat

    def _bias(self, biases: tuple[str, ...], sums: dict[tuple[str, ...], str], nodes: list[Any]) -> str:
        """The sum of what is added to the scores, made once for all layers that add the same."""
        from onnx import helper

        if len(biases) < 2:
            return biases[0] if biases else ""
        if biases not in sums:
            total = biases[0]
            for i, bias in enumerate(biases[1:]):
                result = f"{biases[0]}/{i}/sum"
                nodes.append(helper.make_node("Add", [total, bias], [result], name=result))
                total = result
            sums[biases] = total
        return sums[biases]

    def _leads_to_scores(self, name: str) -> bool:
        """Whether a value is the product of queries and keys, scaled or with something added."""
        node = self.made.get(name)
        if node is None or self._only_reader(node) is None:
            return False
        if node.op_type == "MatMul":
            return self._transposed_keys(node)
        if node.op_type in ("Mul", "Div"):
            return node.input[1] in self.numbers and self._leads_to_scores(node.input[0])
        return node.op_type == "Add" and any(self._leads_to_scores(i) for i in node.input)

    def _transposed_keys(self, node: Any) -> bool:
        keys = self.made.get(node.input[1])
        return keys is not None and len(_perm(keys)) == 4

    def _is_zero(self, name: str) -> bool:
        """Whether a value is nothing but zeros, as T5 adds them in its cross attention."""
        from onnx import numpy_helper

        node = self.made.get(name)
        if node is None or node.op_type != "ConstantOfShape":
            return False
        return not node.attribute or not numpy_helper.to_array(node.attribute[0].t).any()

    def _only_reader(self, node: Any) -> Any | None:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None


def _perm(node: Any) -> tuple[int, ...]:
    """A Transpose's permutation, () for any other node."""
    if node.op_type != "Transpose":
        return ()
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _live(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes that something still reads, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input) | _captured(node)
            kept.append(node)
    return kept[::-1]


def _captured(node: Any) -> set[str]:
    """What the node's subgraphs read."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            found |= {i for n in graph.node for i in n.input} | {i for n in graph.node for i in _captured(n)}
    return found
