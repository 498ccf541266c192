"""The axes of a target's `matrix`: which options it varies, over which values, and what each is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from modelbuild.errors import Problem, ProblemError, problem
from modelbuild.kind import FieldRole
from modelbuild.language import option
from modelbuild.language.node import Entry, Node, brief
from modelbuild.language.option import KindOptions, Option
from modelbuild.language.scalar import canonical
from modelbuild.language.sections import kind_of
from modelbuild.language.variables import Variables

MOST_VARIANTS = 1000
"""Of one target."""
MOST_PROBLEMS = 10
"""Of one axis that are told."""


class Axis(msgspec.Struct, frozen=True):
    """One option of a matrix: each value's text in the variant's name, and the option with that value."""

    name: str
    values: tuple[tuple[str, Option], ...]


def axes(
    node: Node, options: KindOptions, own: Mapping[str, Entry], variables: Variables, project: Path
) -> tuple[list[Axis], list[Problem]]:
    """The axes in the order written, and every problem with them. `own` is what the target sets itself."""
    if not node.entries:
        what = "is empty" if node.entries == {} else f"must be a map of option to values, not {kind_of(node)}"
        return [], [Problem(f"`matrix` {what}", node.where)]
    problems = option.unknown_options(node.entries, options)
    found = []
    for name, (key, values) in node.entries.items():
        if name not in options.roles:
            continue
        if name in own:
            first = (("first", str(own[name][0].where)),)
            problems.append(Problem(f"`{name}` is both an option and in the matrix", key.where, first))
        try:
            found.append(_axis(options.roles[name], key, values, variables, project))
        except ProblemError as e:
            problems += e.problems
    return found, problems


def _axis(role: FieldRole, key: Node, node: Node, variables: Variables, project: Path) -> Axis:
    if not isinstance(node.value, list) or not node.value:
        what = "an empty list" if node.value == [] else kind_of(node)
        raise problem(f"the matrix must give `{role.name}` a list of values, not {what}", where=node.where)
    if len(node.value) > MOST_VARIANTS:
        raise problem(f"`{role.name}` has more than {MOST_VARIANTS} values in the matrix", where=node.where)
    found: dict[str, tuple[str, Option]] = {}
    problems: list[Problem] = []
    for child in node.value:
        try:
            text = _value_text(child, variables)
            if text.casefold() in found:
                raise problem(f"`{text}` is in the matrix twice", where=child.where)
            found[text.casefold()] = (text, option.check(role, (key, child), variables, project))
        except ProblemError as e:
            problems += e.problems
    if problems:
        raise ProblemError(*problems[:MOST_PROBLEMS])
    return Axis(role.name, tuple(found.values()))


def _value_text(node: Node, variables: Variables) -> str:
    value = variables.value(node)
    text = None if isinstance(value, dict | list) else canonical(value)
    if text is None or not option.VALUE.fullmatch(text):
        hint = "a matrix value is part of a target's name: a number or a short word of letters, digits and `_.+-`"
        shown = kind_of(node) if text is None else f"`{brief(text)}`"
        raise problem(f"a matrix value cannot be {shown}", where=node.where, hint=hint)
    return text
