"""References between targets resolved: variants, order, cycles and selection. Pure: no file is read here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import msgspec

from modelbuild import kind
from modelbuild.errors import Problem, Span, suggestion
from modelbuild.language.recipe import Recipe, Reference, Target

Axis: TypeAlias = tuple[str, str]
"""A matrix axis: the full name of the target that declares it, and the option."""
MOST_VARIANTS = 1000


class Node(msgspec.Struct, frozen=True):
    """A target with its references resolved. `name` is full: `recipe:target`, variants spelled out."""

    name: str
    base: str
    """The full name without the variant: what the recipe file declares."""
    target: Target
    inputs: Mapping[str, tuple[str, ...]]
    """field -> full names of the targets it refers to."""
    axes: Mapping[Axis, str]

    @property
    def recipe(self) -> str:
        return self.target.recipe

    @property
    def short(self) -> str:
        """The name within the recipe, as the link under `artifacts/<recipe>/` is called."""
        return self.name.partition(":")[2]

    def needs(self) -> Iterator[str]:
        """The full names of all inputs, each once."""
        yield from dict.fromkeys(itertools.chain.from_iterable(self.inputs.values()))


class Graph(msgspec.Struct, frozen=True):
    """All targets of a project, inputs before what is made of them."""

    nodes: Mapping[str, Node]
    defaults: Mapping[str, tuple[str, ...]]
    """recipe -> what `modelbuild build RECIPE` builds."""

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and everything they need, in build order."""
        wanted, pending = set[str](), list(names)
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending.extend(self.nodes[name].needs())
        return tuple(name for name in self.nodes if name in wanted)

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
            and _has(n, wanted)
        ]
        if found or colon or wanted:
            return found
        return [name for r, names in self.defaults.items() if fnmatchcase(r, pattern) for name in names]

    def _no_such(self, pattern: str) -> Problem:
        known = [*self.nodes, *(n.short for n in self.nodes.values()), *self.defaults]
        hint = suggestion(pattern, known) or "`modelbuild list` shows every target"
        return Problem(f"no target matches `{pattern}`", hint=hint)


def link(recipes: Sequence[Recipe]) -> tuple[Graph, tuple[Problem, ...]]:
    """The graph of all recipes, and every problem with their references. Targets with problems are left out."""
    return _Linker(recipes).link()


def split_variant(text: str) -> tuple[str, dict[str, str]]:
    """`int8[calibrate=minmax]` as its base name and the axis values asked for."""
    base, bracket, rest = text.partition("[")
    if not bracket:
        return text, {}
    pairs = (pair.partition("=") for pair in rest.rstrip("]").split(",") if pair)
    return base, {axis.strip(): value.strip() for axis, _, value in pairs}


def _has(node: Node, wanted: Mapping[str, str]) -> bool:
    values = {axis: value for (_, axis), value in node.axes.items()}
    return all(values.get(axis) == value for axis, value in wanted.items())


class _Linker:
    """Resolves base by base in dependency order, so that variants flow from a target to what refers to it."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.recipes = {r.name: r for r in recipes}
        self.own: dict[str, list[Target]] = {}
        for recipe in recipes:
            for target in recipe.targets.values():
                self.own.setdefault(f"{recipe.name}:{target.base}", []).append(target)
        self.nodes: dict[str, Node] = {}
        self.variants: dict[str, list[Node]] = {}
        self.problems: list[Problem] = []

    def link(self) -> tuple[Graph, tuple[Problem, ...]]:
        for base in self._order():
            expanded = [n for target in self.own[base] if (nodes := self._expand(base, target)) for n in nodes]
            self.variants[base] = expanded
            self.nodes.update((n.name, n) for n in expanded)
        defaults = {r.name: self._defaults(r) for r in self.recipes.values()}
        return Graph(self.nodes, defaults), tuple(dict.fromkeys(self.problems))

    def _order(self) -> list[str]:
        """Bases with inputs first; those on a cycle, or behind one, are told of and left out."""
        edges = {base: dict.fromkeys(self._bases_needed(base)) for base in self.own}
        order: list[str] = []
        state: dict[str, str] = {}
        for start in edges:
            stack = [(start, iter(edges[start]))] if start not in state else []
            state.setdefault(start, "open")
            while stack:
                base, rest = stack[-1]
                for needed in rest:
                    if needed not in state:
                        state[needed] = "open"
                        stack.append((needed, iter(edges[needed])))
                        break
                    if state[needed] == "open":
                        path = [b for b, _ in stack]
                        self._cycle(path[path.index(needed) :])
                        for b, _ in stack:
                            state[b] = "broken"
                    if state[needed] == "broken":
                        state[base] = "broken"
                else:
                    stack.pop()
                    if state[base] == "open":
                        state[base] = "done"
                        order.append(base)
                    elif stack:
                        state[stack[-1][0]] = "broken"
        return order

    def _bases_needed(self, base: str) -> Iterator[str]:
        for target in self.own[base]:
            for reference in target.references:
                found = self._base_of(reference, target.recipe)
                if found in self.own:
                    yield found

    @staticmethod
    def _base_of(reference: Reference, recipe: str) -> str:
        other, colon, name = reference.text.rpartition(":")
        return f"{other if colon else recipe}:{split_variant(name)[0]}"

    def _cycle(self, bases: list[str]) -> None:
        first = self.own[bases[0]][0]
        where = first.references[0].where
        for target in self.own[bases[0]]:
            for reference in target.references:
                if self._base_of(reference, target.recipe) == bases[1 % len(bases)]:
                    where = reference.where
        path = " → ".join(f"`{b.partition(':')[2]}`" for b in [*bases, bases[0]])
        self.problems.append(
            Problem(
                "targets refer to each other in a circle", where, (("circle", path),), "remove one of the references"
            )
        )

    def _expand(self, base: str, target: Target) -> list[Node]:
        """One node per consistent choice of input variants."""
        roles = {f.name: f for f in kind.fields(type(target.spec))}
        before = len(self.problems)
        resolved = [(r, self._candidates(r, target.recipe)) for r in target.references]
        if len(self.problems) > before:
            return []
        own: dict[Axis, str] = {(base, axis): value for axis, value in target.variant}
        choices: list[tuple[dict[Axis, str], dict[str, tuple[str, ...]]]] = [(own, {})]
        for reference, candidates in resolved:
            if roles[reference.field].many:
                choices = [
                    (axes, _adding(inputs, reference.field, [c.name for c in candidates])) for axes, inputs in choices
                ]
            else:
                choices = [
                    ({**axes, **candidate.axes}, _adding(inputs, reference.field, [candidate.name]))
                    for axes, inputs in choices
                    for candidate in candidates
                    if all(axes.get(axis, value) == value for axis, value in candidate.axes.items())
                ]
            if len(choices) > MOST_VARIANTS:
                self.problems.append(
                    Problem(f"target `{target.base}` has more than {MOST_VARIANTS:,} variants", target.where)
                )
                return []
        for field in roles.values():
            if field.role == "ref":
                for _, inputs in choices:
                    inputs.setdefault(field.name, ())
        return [Node(self._name(base, axes), base, target, inputs, axes) for axes, inputs in choices]

    def _candidates(self, reference: Reference, recipe: str) -> list[Node]:
        base = self._base_of(reference, recipe)
        wanted = split_variant(reference.text.rpartition(":")[2])[1]
        if base not in self.own:
            if not self._is_declared(base):
                self.problems.append(self._unknown(reference, recipe))
            return []
        found = [n for n in self.variants.get(base, ()) if _has(n, wanted)]
        if not found and wanted and base in self.variants:
            known = sorted(n.short for n in self.variants[base])
            self.problems.append(
                Problem(
                    f"no variant of `{base}` matches `{reference.text}`",
                    reference.where,
                    (("variants", ", ".join(known[:8]) + (" …" if len(known) > 8 else "")),),
                )
            )
        return found

    def _is_declared(self, base: str) -> bool:
        """Whether a target that has problems of its own goes by this name."""
        recipe, _, name = base.partition(":")
        return recipe in self.recipes and name in self.recipes[recipe].declared

    def _unknown(self, reference: Reference, recipe: str) -> Problem:
        other, colon, name = reference.text.rpartition(":")
        if colon and other not in self.recipes:
            return Problem(f"unknown recipe `{other}`", reference.where, hint=suggestion(other, self.recipes))
        known = [b.partition(":")[2] for b in self.own if b.startswith(f"{other or recipe}:")]
        elsewhere = [b for b in self.own if b.endswith(f":{name}")]
        hint = suggestion(name, known)
        if hint is None and elsewhere:
            hint = f"another recipe has one: `{elsewhere[0]}`"
        return Problem(f"unknown target `{reference.text}`", reference.where, (("targets", ", ".join(known)),), hint)

    @staticmethod
    def _name(base: str, axes: Mapping[Axis, str]) -> str:
        """The base with its axes; an axis that two targets declare is told apart by the declaring target's name."""
        if not axes:
            return base
        count: dict[str, int] = {}
        for _, axis in axes:
            count[axis] = count.get(axis, 0) + 1
        parts = [
            f"{axis if count[axis] == 1 else origin.partition(':')[2] + '.' + axis}={value}"
            for (origin, axis), value in axes.items()
        ]
        return f"{base}[{','.join(parts)}]"

    def _defaults(self, recipe: Recipe) -> tuple[str, ...]:
        """What the recipe's `default:` names, else its leaves: targets that no target of the recipe refers to."""
        if recipe.default:
            found = (self._candidates(reference, recipe.name) for reference in recipe.default)
            return tuple(dict.fromkeys(n.name for n in itertools.chain.from_iterable(found)))
        mine = [n for n in self.nodes.values() if n.recipe == recipe.name]
        used = {need for n in mine for need in n.needs()}
        return tuple(n.name for n in mine if n.name not in used)


def _adding(inputs: Mapping[str, tuple[str, ...]], field: str, names: list[str]) -> dict[str, tuple[str, ...]]:
    return {**inputs, field: (*inputs.get(field, ()), *names)}


def span_of(node: Node, field: str) -> Span:
    """Where a field of a target was written, else where the target was."""
    return node.target.fields.get(field, node.target.where)
