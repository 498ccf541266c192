"""From recipes to the graph: references resolved, variants passed on, cycles told, each target's kind consulted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from modelbuild import kind, variation
from modelbuild.errors import Problem, ProblemError, suggestion
from modelbuild.graph import Axis, Graph, Node, Source, split_variant
from modelbuild.language.recipe import Recipe, Reference, Target

Axes: TypeAlias = dict[tuple[str, str], str]
"""(full name of the target that declares the axis, option) -> value."""
MOST_VARIANTS = 1000


def link(recipes: Sequence[Recipe]) -> tuple[Graph, tuple[Problem, ...]]:
    """The graph of all recipes, and every problem with their references. Targets with problems are left out."""
    return _Linker(recipes).link()


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
            self.variants[base] = expanded = self._expand_all(base)
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

    def _expand_all(self, base: str) -> list[Node]:
        """The nodes of all that a matrix made of a target; none where they are too many."""
        found: list[Node] = []
        for target in self.own[base]:
            found += self._expand(base, target)
            if len(found) > MOST_VARIANTS:
                return self._too_many(target)
        return found

    def _too_many(self, target: Target) -> list[Node]:
        title = f"target `{target.base}` has more than {MOST_VARIANTS:,} variants"
        self.problems.append(Problem(title, target.where))
        return []

    def _expand(self, base: str, target: Target) -> list[Node]:
        """One node per consistent choice of input variants."""
        roles = {f.name: f for f in kind.fields(type(target.spec))}
        before = len(self.problems)
        resolved = [(r, self._candidates(r, target.recipe)) for r in target.references]
        if len(self.problems) > before:
            return []
        own = {(base, axis): value for axis, value in target.variant}
        choices: list[tuple[Axes, dict[str, tuple[str, ...]]]] = [(own, {})]
        for reference, candidates in resolved:
            if roles[reference.field].many:
                choices = [
                    (axes, _adding(inputs, reference.field, [c.name for c in candidates])) for axes, inputs in choices
                ]
            else:
                agreeing = (
                    ({**axes, **_axes(candidate)}, _adding(inputs, reference.field, [candidate.name]))
                    for axes, inputs in choices
                    for candidate in candidates
                    if all(axes.get(axis, value) == value for axis, value in _axes(candidate).items())
                )
                choices = list(itertools.islice(agreeing, MOST_VARIANTS + 1))
            if len(choices) > MOST_VARIANTS:
                return self._too_many(target)
        for field in roles.values():
            if field.role == "ref":
                for _, inputs in choices:
                    inputs.setdefault(field.name, ())
        nodes = [_node(self._name(base, axes), base, target, inputs, axes) for axes, inputs in choices]
        return self._varying(target, nodes) if any(field.varied for field in roles.values()) else nodes

    def _varying(self, target: Target, nodes: list[Node]) -> list[Node]:
        """Targets that try other options of those above them, with what they try checked; none where it is wrong."""
        graph, tries = Graph(self.nodes, {}), kind.tried(kind.load(target.kind), target.spec)
        try:
            return [variation.checked(graph, node, tries) for node in nodes]
        except ProblemError as e:
            self.problems += e.problems
            return []

    def _candidates(self, reference: Reference, recipe: str) -> list[Node]:
        base = self._base_of(reference, recipe)
        wanted = split_variant(reference.text.rpartition(":")[2])[1]
        if base not in self.own:
            if not self._is_declared(base):
                self.problems.append(self._unknown(reference, recipe))
            return []
        found = [n for n in self.variants.get(base, ()) if n.has(wanted)]
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
    def _name(base: str, axes: Axes) -> str:
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


def _axes(node: Node) -> Axes:
    return {(axis.origin, axis.name): axis.value for axis in node.axes}


def _node(name: str, base: str, target: Target, inputs: dict[str, tuple[str, ...]], axes: Axes) -> Node:
    """The target as plain data, with what its kind says of it."""
    module = kind.load(target.kind)
    roles = {f.name: f for f in kind.fields(type(target.spec))}
    return Node(
        name=name,
        base=base,
        recipe=target.recipe,
        kind=target.kind,
        version=module.VERSION,
        where=target.where,
        options=tuple(f.name for f in roles.values() if f.role == "option"),
        inputs=inputs,
        lineage=tuple(f.name for f in roles.values() if f.lineage),
        sources=tuple(
            Source(s.field, s.role, s.text, str(s.path), s.where, roles[s.field].files, roles[s.field].siblings)
            for s in target.sources
        ),
        named=tuple(f.name for f in roles.values() if f.named),
        varied=tuple(f.name for f in roles.values() if f.varied),
        axes=tuple(Axis(origin, axis, value) for (origin, axis), value in axes.items()),
        **variation.asked_of_kind(module, target.spec),
    )
