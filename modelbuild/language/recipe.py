"""Recipes: text to frozen targets that know where they were written, with every problem of every recipe at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from modelbuild.errors import Problem, ProblemError, Span, suggestion
from modelbuild.language import option
from modelbuild.language.node import Node
from modelbuild.language.option import Reference, SourceRef
from modelbuild.language.sections import Reader, Sections, kind_of
from modelbuild.language.target import Checker, Target, name_problem
from modelbuild.language.variables import Variables, declared

__all__ = ["Recipe", "Reference", "SourceRef", "Target", "read"]


class Recipe(msgspec.Struct, frozen=True):
    """A recipe's good targets by full name, in the order of the file, variants in place of their target.

    `declared` has the names of those with problems too: a reference to one of them is no mistake of its own.
    `files` are the paths of all files that were read for it.
    """

    name: str
    path: Path
    targets: Mapping[str, Target]
    default: tuple[Reference, ...]
    declared: frozenset[str]
    files: tuple[str, ...]
    where: Span


def read(
    project: Path, paths: Sequence[Path], settings: Mapping[str, str] = {}
) -> tuple[tuple[Recipe, ...], tuple[Problem, ...]]:
    """The recipes in `paths`, and every problem of all of them; never raises for what a file says.

    A target with a problem is left out of its recipe, a recipe that cannot be read is left out of the result.
    `settings` are `--set NAME=VALUE`: each overrides the variable of that name in every recipe that declares it.
    """
    project = _absolute(Path.cwd(), project)
    reader = Reader(project)
    recipes: list[Recipe] = []
    problems: list[Problem] = []
    variables: set[str] = set()
    all_read = True
    for path in (_absolute(project, p) for p in paths):
        sections = reader.read(path)
        if sections is None or not sections.whole:
            all_read = False
            continue
        variables.update(sections.vars)
        try:
            recipes.append(_recipe(project, path, sections, settings, problems))
        except ProblemError as e:
            problems += e.problems
    kept = tuple(_distinct(recipes, problems))
    if all_read:
        problems += _unknown_settings(settings, variables)
    return kept, tuple(sorted(dict.fromkeys([*reader.problems, *problems]), key=_place))


def _place(problem: Problem) -> tuple[bool, str, int, int]:
    """As one reads: by file and line, what has no place last."""
    where = problem.where
    return (False, where.path, where.line, where.column) if where else (True, "", 0, 0)


def _absolute(folder: Path, path: Path) -> Path:
    """`path` from `folder`, without `..` and with its symlinks kept: messages name what the user knows."""
    return Path(os.path.normpath(folder / path))


def _recipe(
    project: Path, path: Path, sections: Sections, settings: Mapping[str, str], problems: list[Problem]
) -> Recipe:
    variables, wrong = declared(sections.vars, settings)
    problems += wrong
    name, where = _name(path, sections, variables)
    checker = Checker(name, project, variables, sections.defaults)
    targets = checker.targets(sections.targets)
    problems += checker.problems
    if not sections.names_targets:
        problems.append(Problem("the recipe has no `targets`", where))
    default = tuple(_default(sections.default, variables, problems))
    return Recipe(name, path, targets, default, frozenset(sections.targets), sections.files, where)


def _name(path: Path, sections: Sections, variables: Variables) -> tuple[str, Span]:
    node = sections.model
    if node is None:
        if not option.NAME.fullmatch(path.stem):
            shown = name_problem("model", os.fsencode(path.stem).decode("utf-8", "backslashreplace"), sections.where)
            raise ProblemError(msgspec.structs.replace(shown, hint="rename the file, or give a name by `model:`"))
        return path.stem, sections.where
    value = variables.value(node)
    text = value if isinstance(value, str) else node.text
    if text is None:
        raise ProblemError(Problem(f"`model` must be a name, not {kind_of(node)}", node.where))
    if not option.NAME.fullmatch(text):
        raise ProblemError(name_problem("model", text, node.where))
    return text, node.where


def _default(node: Node | None, variables: Variables, problems: list[Problem]) -> Iterator[Reference]:
    if node is None:
        return
    for child in node.value if isinstance(node.value, list) else [node]:
        try:
            yield option.reference("default", variables.value(child), child)
        except ProblemError as e:
            problems += e.problems


def _distinct(recipes: list[Recipe], problems: list[Problem]) -> Iterator[Recipe]:
    """The recipes whose names no other has: file systems that fold case could not hold both."""
    seen: dict[str, Recipe] = {}
    for recipe in recipes:
        first = seen.setdefault(recipe.name.casefold(), recipe)
        if first is recipe:
            yield recipe
            continue
        title = f"two recipes are called `{recipe.name}`"
        problems.append(Problem(title, recipe.where, (("first", str(first.where)),), "give one another `model:`"))


def _unknown_settings(settings: Mapping[str, str], variables: set[str]) -> Iterator[Problem]:
    for name in settings:
        if name not in variables:
            known = (("variables", ", ".join(sorted(variables)) or "none"),)
            hint = suggestion(name, sorted(variables)) or "declare it under `vars:` in a recipe"
            yield Problem(f"`--set {name}`: no recipe has this variable", None, known, hint)
