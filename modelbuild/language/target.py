"""From the sections of a recipe to its targets: kinds and options checked, defaults applied, matrices expanded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild import kind
from modelbuild.errors import Problem, ProblemError, Span, problem
from modelbuild.language import matrix, option
from modelbuild.language.matrix import Axis
from modelbuild.language.node import Entry, Node, brief
from modelbuild.language.option import KindOptions, Option, Reference, SourceRef, load_kind, unknown_options
from modelbuild.language.sections import Section, kind_of
from modelbuild.language.variables import Variables

MOST_TARGETS = 10_000
"""Of one recipe, variants counted."""
LONGEST_NAME = 200
"""Characters; a target's name is one file name below `artifacts/`."""
MOST_PROBLEMS = 100
"""Of one recipe, before its other targets are not looked at."""
RESERVED = ("kind", "matrix", "description")


class Target(msgspec.Struct, frozen=True):
    """One thing to build. `name` is `base[axis=value,...]` for a variant, with the axes in the matrix's order.

    `fields` says where each option was written, be it in the target, a matrix, `defaults` or an extended file.
    """

    recipe: str
    name: str
    base: str
    variant: tuple[tuple[str, str], ...]
    kind: str
    spec: msgspec.Struct
    references: tuple[Reference, ...]
    sources: tuple[SourceRef, ...]
    where: Span
    fields: Mapping[str, Span]


class Checker:
    """Checks the targets of one recipe and collects what is wrong in `problems`."""

    def __init__(self, recipe: str, project: Path, variables: Variables, defaults: Mapping[str, Section]) -> None:
        self.recipe, self.project, self.variables = recipe, project, variables
        self.problems: list[Problem] = []
        self._defaults = {name: self._default_options(name, section) for name, section in defaults.items()}

    def targets(self, sections: Mapping[str, Section]) -> dict[str, Target]:
        """Every target without problems, by name, variants in place of the target that has the matrix."""
        found: dict[str, Target] = {}
        folded: dict[str, Span] = {}
        for base, section in sections.items():
            if len(self.problems) >= MOST_PROBLEMS:
                self.problems.append(
                    Problem("too many problems: the targets from here on were not checked", section.key.where)
                )
                break
            misnamed = list(_name_problems(base, section.key, folded))
            self.problems += misnamed
            try:
                variants = self._variants(base, section)
            except ProblemError as e:
                self.problems += e.problems
                continue
            if misnamed:
                continue
            if len(found) + len(variants) > MOST_TARGETS:
                self.problems.append(Problem(f"more than {MOST_TARGETS} targets in one recipe", section.key.where))
                break
            found.update((t.name, t) for t in variants)
        return found

    def _variants(self, base: str, section: Section) -> list[Target]:
        loaded = self._kind(base, section)
        own = {name: entry for name, entry in section.entries.items() if name in loaded.roles or name not in RESERVED}
        problems = unknown_options(own, loaded)
        problems += self._description(section, loaded)
        axes: list[Axis] = []
        if "matrix" in section.entries and "matrix" not in loaded.roles:
            axes, wrong = matrix.axes(section.entries["matrix"][1], loaded, own, self.variables, self.project)
            problems += wrong
        options = self._options(own, loaded, problems)
        given = {**self._defaults.get(loaded.name, {}), **options}
        for name, role in loaded.roles.items():
            if role.required and name not in given and name not in own and name not in _axis_names(section):
                needs = ", ".join(f"`{n}`" for n, r in loaded.roles.items() if r.required)
                facts = (("kind", f"`{loaded.name}` needs {needs}"),)
                problems.append(Problem(f"target `{base}` lacks the option `{name}`", section.key.where, facts))
        usable = {name: o for name, o in given.items() if o is not None}
        if problems or len(usable) < len(given):
            raise ProblemError(*problems)
        return self._expanded(base, section, loaded, usable, axes)

    def _kind(self, base: str, section: Section) -> KindOptions:
        if "kind" not in section.entries:
            hint = f"add `kind:`, one of {', '.join(kind.names())}"
            raise problem(f"target `{base}` has no `kind`", where=section.key.where, hint=hint)
        node = section.entries["kind"][1]
        name = self.variables.value(node)
        if not isinstance(name, str):
            raise problem(f"`kind` must be the name of a kind, not {kind_of(node)}", where=node.where)
        return load_kind(name, node.where)

    def _description(self, section: Section, loaded: KindOptions) -> Iterable[Problem]:
        if "description" in section.entries and "description" not in loaded.roles:
            node = section.entries["description"][1]
            if not isinstance(node.value, str):
                yield Problem("`description` must be text", node.where)

    def _options(self, entries: Mapping[str, Entry], loaded: KindOptions, problems: list[Problem]) -> dict[str, Option]:
        found = {}
        for name, entry in entries.items():
            if name in loaded.roles:
                try:
                    found[name] = option.check(loaded.roles[name], entry, self.variables, self.project)
                except ProblemError as e:
                    problems += e.problems
        return found

    def _default_options(self, name: str, section: Section) -> dict[str, Option | None]:
        """The checked defaults of a kind; None for one with a problem, which is told once and spoils its targets."""
        try:
            loaded = load_kind(name, section.key.where)
        except ProblemError as e:
            self.problems += e.problems
            return {}
        self.problems += unknown_options(section.entries, loaded)
        good = self._options(section.entries, loaded, self.problems)
        return {n: good.get(n) for n in section.entries if n in loaded.roles}

    def _expanded(
        self, base: str, section: Section, loaded: KindOptions, options: dict[str, Option], axes: list[Axis]
    ) -> list[Target]:
        count = 1
        for axis in axes:
            count *= len(axis.values)
        if count > matrix.MOST_VARIANTS:
            shape = " by ".join(str(len(a.values)) for a in axes)
            where = section.entries["matrix"][0].where
            raise problem(f"the matrix has {count} variants", where=where, shape=shape, limit=matrix.MOST_VARIANTS)
        found: list[Target] = []
        problems: dict[tuple[str, Span | None], Problem] = {}
        for values in itertools.product(*(axis.values for axis in axes)):
            chosen = {axis.name: value for axis, (_, value) in zip(axes, values, strict=True)}
            variant = tuple((axis.name, text) for axis, (text, _) in zip(axes, values, strict=True))
            try:
                found.append(self._target(base, section, loaded, {**options, **chosen}, variant))
            except ProblemError as e:
                shown = f"{base}[{','.join(f'{a}={v}' for a, v in variant)}]"
                for p in e.problems:
                    told = p.replacing(facts=(("variant", shown),)) if variant else p
                    problems.setdefault((p.title, p.where), told)
        if problems:
            raise ProblemError(*problems.values())
        return found

    def _target(
        self,
        base: str,
        section: Section,
        loaded: KindOptions,
        options: dict[str, Option],
        variant: tuple[tuple[str, str], ...],
    ) -> Target:
        name = base + (f"[{','.join(f'{axis}={text}' for axis, text in variant)}]" if variant else "")
        if len(name) > LONGEST_NAME:
            raise problem("the variant's name is too long", where=section.key.where, limit=f"{LONGEST_NAME} characters")
        ordered = [(role, options[n]) for n, role in loaded.roles.items() if n in options]
        fields = {role.name: o.where for role, o in ordered}
        return Target(
            recipe=self.recipe,
            name=name,
            base=base,
            variant=variant,
            kind=loaded.name,
            spec=_spec(loaded, {role.attribute: o.value for role, o in ordered}, fields, section.key.where),
            references=tuple(r for _, o in ordered for r in o.references),
            sources=tuple(s for _, o in ordered for s in o.sources),
            where=section.key.where,
            fields=fields,
        )


def _spec(loaded: KindOptions, values: dict[str, Any], fields: Mapping[str, Span], target: Span) -> msgspec.Struct:
    """The kind's `Spec`, whose `__post_init__` may find that options do not fit together."""
    try:
        return loaded.spec(**values)
    except kind.SpecError as e:
        where = fields.get(e.field or "", target)
        raise ProblemError(Problem(e.title, where, hint=e.hint)) from None
    except Exception as e:  # a kind is anybody's code: what it raises is told, not passed on
        cause = (str(e).strip() or repr(e)).splitlines()[0]
        raise problem(f"kind `{loaded.name}` refuses these options", where=target, cause=cause) from None


def name_problem(what: str, name: str, where: Span) -> Problem:
    """A model or target name that could not be a file name everywhere."""
    hint = "use letters, digits, `_`, `-` and `.`, at most 100, and do not start with `.` or `-`"
    return Problem(f"`{brief(name)}` cannot be the name of a {what}", where, hint=hint)


def _name_problems(name: str, key: Node, folded: dict[str, Span]) -> Iterator[Problem]:
    """What is wrong with a target's name; `folded` holds the names so far with their case folded."""
    if not option.NAME.fullmatch(name):
        yield name_problem("target", name, key.where)
    first = folded.setdefault(name.casefold(), key.where)
    if first != key.where:
        hint = "some file systems cannot tell them apart"
        title = f"target `{brief(name)}` differs from another in case alone"
        yield Problem(title, key.where, (("first", str(first)),), hint)


def _axis_names(section: Section) -> Mapping[str, Entry]:
    return (section.entries["matrix"][1].entries or {}) if "matrix" in section.entries else {}
