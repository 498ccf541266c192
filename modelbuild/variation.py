"""Targets with other options than the recipe gives them, for kinds that try several (`modelbuild.kind.Varied`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from modelbuild import kind
from modelbuild.errors import Problem, ProblemError, problem, suggestion
from modelbuild.graph import Graph, Node


def asked_of_kind(module: kind.Kind, spec: msgspec.Struct) -> dict[str, Any]:
    """The fields of a `Node` that its kind decides by the options."""
    return {
        "spec": msgspec.to_builtins(spec),
        "tools": {tool: module.TOOLS.get(tool, "") for tool in sorted(kind.used_tools(module, spec))},
        "hardware": dict(kind.used_hardware(module, spec)),
        "resources": tuple(kind.used_resources(module, spec)),
    }


def with_options(node: Node, options: Mapping[str, Any]) -> Node:
    """The target with some options changed; a `ProblemError` where its kind has no such option or value."""
    module = kind.load(node.kind)
    roles = {f.name: f for f in kind.fields(module.Spec)}
    for name in options:
        if name not in roles:
            raise problem(f"kind `{node.kind}` has no option `{name}`", hint=suggestion(name, node.options))
        if roles[name].role != "option":
            hint = "try references and files by `matrix`, and choose by a target of kind `ranked`"
            raise problem(f"`{name}` of kind `{node.kind}` is no option but a {roles[name].role}", hint=hint)
    try:
        spec = msgspec.convert({**node.spec, **options}, module.Spec)
    except Exception as e:  # a kind is anybody's code: what it raises is told, not passed on
        shown = ", ".join(f"{name}: {msgspec.json.encode(value).decode()}" for name, value in options.items())
        cause = (str(e).strip() or repr(e)).splitlines()[0]
        raise problem(f"kind `{node.kind}` does not take `{shown}`", cause=cause) from None
    return msgspec.structs.replace(node, **asked_of_kind(module, spec))


def named(by: Node, text: str) -> str:
    """The full name of the target that a field of `by` names as `text`."""
    return text if ":" in text else f"{by.recipe}:{text}"


def varied(graph: Graph, by: Node, changes: Mapping[str, Mapping[str, Any]]) -> tuple[Graph, frozenset[str]]:
    """The targets above `by` with the changes (target -> option -> value) made, and the names of those that differ."""
    nodes = {name: graph.nodes[name] for name in graph.closure(by.needs())}
    different: set[str] = set()
    for text, options in changes.items():
        name = named(by, text)
        nodes[name] = with_options(nodes[name], options)
        different.add(name)
    for name, node in nodes.items():  # inputs come first
        if not different.isdisjoint(node.needs()):
            different.add(name)
    return Graph(nodes, {}), frozenset(different)


def checked(graph: Graph, by: Node, tries: Mapping[str, Mapping[str, Any]]) -> Node:
    """`by` with the tools of all that it tries among its own, which its key has; a `ProblemError` with all problems.

    `tries` is what `kind.tried` says. Its targets are above `by`, so that changing them makes a difference.
    """
    fields = [f.name for f in kind.fields(kind.load(by.kind).Spec) if f.role == "ref" and not f.varied]
    above = set(graph.closure(name for field in fields for name in by.inputs.get(field, ())))
    tools, problems = dict(by.tools), list[Problem]()
    for text, options in tries.items():
        name = named(by, text)
        if variants := [n.short for n in graph.nodes.values() if n.axes and n.base == name]:
            listed = ", ".join(variants[:8]) + (" …" if len(variants) > 8 else "")
            title = f"`{text}` means {len(variants)} targets"
            problems.append(Problem(title, by.where, (("variants", listed),), "name one of them, and in `from` too"))
            continue
        if name not in above:
            hint = f"name one of what {' and '.join(f'`{f}`' for f in fields if by.inputs.get(f))} is made of"
            problems.append(Problem(f"nothing that `{by.short}` tries depends on `{text}`", by.where, hint=hint))
            continue
        for option, value in _values(options):
            try:
                tools.update(with_options(graph.nodes[name], {option: value}).tools)
            except ProblemError as e:
                facts = (("tried by", f"`{by.name}`"), ("target", f"`{name}`"))
                problems += [p.replacing(where=by.where, facts=facts) for p in e.problems]
    if problems:
        raise ProblemError(*dict.fromkeys(problems))
    return msgspec.structs.replace(by, tools=dict(sorted(tools.items())))


def _values(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for option, values in options.items():
        for value in values:
            yield option, value
