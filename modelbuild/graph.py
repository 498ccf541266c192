"""The targets of a project as data, everything resolved: order, dependents, selection. Pure: no file is read here.

This is all that deciding needs. It is plain data, so that it can be kept between runs (`modelbuild.compiled`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from modelbuild.errors import Problem, Span, suggestion


class Source(msgspec.Struct, frozen=True):
    """A file or folder that a target reads, and which files belong to it (see `modelbuild.kind`).

    `path` is absolute; for the role `package` it is the package and a folder in it. `text` is as the recipe has it.
    """

    field: str
    role: Literal["source", "package"]
    text: str
    path: str
    where: Span
    files: tuple[str, ...] = ()
    siblings: tuple[str, ...] = ()


class Axis(msgspec.Struct, frozen=True):
    """A variant's value on a matrix axis; `origin` is the full name of the target that declares the axis."""

    origin: str
    name: str
    value: str


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A target with its references resolved. `name` is full: `recipe:target`, variants spelled out."""

    name: str
    base: str
    """The full name without the variant: what the recipe file declares."""
    recipe: str
    kind: str
    version: int
    """Of the kind."""
    where: Span
    spec: dict[str, Any]
    """Every field of the kind's `Spec` as plain data."""
    options: tuple[str, ...]
    """The fields that are options."""
    inputs: dict[str, tuple[str, ...]]
    """field -> full names of the targets it refers to."""
    lineage: tuple[str, ...]
    """The fields whose inputs' history counts."""
    sources: tuple[Source, ...]
    tools: dict[str, str]
    """package -> the extra that installs it."""
    hardware: dict[str, str]
    """fact of the machine -> what helps where it has no such thing."""
    resources: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    named: tuple[str, ...] = ()
    """The fields whose inputs' names count."""
    varied: tuple[str, ...] = ()
    """The fields whose inputs the build may ask for with other options."""

    @property
    def short(self) -> str:
        """The name within the recipe, as the link under `artifacts/<recipe>/` is called."""
        return self.name.partition(":")[2]

    def called(self) -> dict[str, tuple[str, ...]]:
        """The inputs of the fields whose names count, by their names; without the recipe's where it is this one."""
        own = f"{self.recipe}:"
        return {f: tuple(n.removeprefix(own) for n in self.inputs.get(f, ())) for f in self.named}

    def needs(self) -> Iterator[str]:
        """The full names of all inputs, each once."""
        yield from dict.fromkeys(itertools.chain.from_iterable(self.inputs.values()))

    def has(self, wanted: Mapping[str, str]) -> bool:
        """Whether this variant has these axis values."""
        values = {axis.name: axis.value for axis in self.axes}
        return all(values.get(axis) == value for axis, value in wanted.items())


class Graph(msgspec.Struct, frozen=True, dict=True):
    """All targets of a project, inputs before what is made of them."""

    nodes: dict[str, Node]
    defaults: dict[str, tuple[str, ...]]
    """recipe -> what `modelbuild build RECIPE` builds."""

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        """Where each target stands among all."""
        return {name: i for i, name in enumerate(self.nodes)}

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and everything they need, in build order."""
        wanted, pending = set[str](), list(names)
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending.extend(self.nodes[name].needs())
        return tuple(sorted(wanted, key=self.positions.__getitem__))

    def dependents(self, name: str) -> tuple[str, ...]:
        """The targets that refer to `name` directly."""
        return tuple(n.name for n in self.nodes.values() if name in n.needs())

    def select(self, patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """The targets that command-line patterns mean, and a problem for each pattern that means none.

        `recipe:target`, a bare target of any recipe, a bare recipe (its defaults), with `*` and `?` in either; a
        target with a matrix means all its variants, `target[axis=value]` those that match. No pattern: every default.
        """
        if not patterns:
            return tuple(dict.fromkeys(itertools.chain.from_iterable(self.defaults.values()))), ()
        chosen: dict[str, None] = {}
        problems = []
        for pattern in patterns:
            found = self._matching(pattern)
            chosen.update(dict.fromkeys(found))
            if not found:
                problems.append(self._no_such(pattern))
        return tuple(chosen), tuple(problems)

    def _matching(self, pattern: str) -> list[str]:
        recipe, colon, target = pattern.rpartition(":")
        base, wanted = split_variant(target)
        found = [
            n.name
            for n in self.nodes.values()
            if fnmatchcase(n.base.partition(":")[2], base)
            and (not colon or fnmatchcase(n.recipe, recipe))
            and n.has(wanted)
        ]
        if found or colon or wanted:
            return found
        return [name for r, names in self.defaults.items() if fnmatchcase(r, pattern) for name in names]

    def _no_such(self, pattern: str) -> Problem:
        known = [*self.nodes, *(n.short for n in self.nodes.values()), *self.defaults]
        hint = suggestion(pattern, known) or "`modelbuild list` shows every target"
        return Problem(f"no target matches `{pattern}`", hint=hint)


def split_variant(text: str) -> tuple[str, dict[str, str]]:
    """`int8[calibrate=minmax]` as its base name and the axis values asked for."""
    base, bracket, rest = text.partition("[")
    if not bracket:
        return text, {}
    pairs = (pair.partition("=") for pair in rest.rstrip("]").split(",") if pair)
    return base, {axis.strip(): value.strip() for axis, _, value in pairs}
