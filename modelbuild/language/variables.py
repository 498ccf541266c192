"""`${VAR}`: the variables of a recipe, and the values of nodes with them filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelbuild.errors import Problem, ProblemError, suggestion
from modelbuild.language.document import parse
from modelbuild.language.node import Entry, Node, brief
from modelbuild.language.scalar import Scalar, canonical, resolve

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LONGEST_TEXT = 4 << 20
"""Characters that all replacements of one recipe may produce: a small file must not fill the memory."""

_USE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")


class Variables:
    """Fills in the variables of one recipe."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self.values = values
        self._room = LONGEST_TEXT

    def value(self, node: Node) -> Any:
        """The plain value of a node (dicts, lists, scalars); a `ProblemError` names every variable that is not one."""
        problems: list[Problem] = []
        value = self._value(node, problems)
        if problems:
            raise ProblemError(*problems)
        return value

    def _value(self, node: Node, problems: list[Problem]) -> Any:
        value = node.value
        if isinstance(value, str):
            return self._text(value, node, problems) if "${" in value else value
        if isinstance(value, dict):
            return {key: self._value(child, problems) for key, (_, child) in value.items()}
        if isinstance(value, list):
            return [self._value(child, problems) for child in value]
        return value

    def _text(self, text: str, node: Node, problems: list[Problem]) -> Scalar:
        whole = _USE.fullmatch(text)
        if whole and whole[1] is not None:
            return self._look_up(whole, node, problems)

        def replacement(use: re.Match[str]) -> str:
            found = "${" if use[1] is None else canonical(self._look_up(use, node, problems))
            self._room -= len(found)
            return found if self._room >= 0 else ""

        filled = _USE.sub(replacement, text)
        if self._room < 0:
            problems.append(Problem("the variables expand to too much text", node.where))
        return filled

    def _look_up(self, use: re.Match[str], node: Node, problems: list[Problem]) -> Scalar:
        name = use[1]
        if name in self.values and use[2]:
            return self.values[name]
        where = _narrowed(node, use[0])
        if not use[2] or not NAME.fullmatch(name):
            hint = "write `$${` for a literal `${`"
            problems.append(Problem(f"`{brief(use[0])}` is no variable", where, hint=hint))
        else:
            known = (("variables", ", ".join(self.values) or "none"),)
            hint = suggestion(name, self.values) or "declare it under `vars:`"
            problems.append(Problem(f"undefined variable `{brief(name)}`", where, known, hint))
        return ""


def _narrowed(node: Node, use: str) -> Any:
    """The place of one use inside a text of one line."""
    line = node.file.lines[node.line] if node.line < len(node.file.lines) else ""
    column = line.find(use, node.column)
    return node.where if column < 0 else node.file.span(node.line, column, len(use))


def declared(entries: Mapping[str, Entry], settings: Mapping[str, str]) -> tuple[Variables, list[Problem]]:
    """The variables of a recipe's `vars`, as `--set` overrides them, and what is wrong with them."""
    problems: list[Problem] = []
    values: dict[str, Scalar] = {}
    for name, (key, node) in entries.items():
        if not NAME.fullmatch(name):
            hint = "use letters, digits and `_`"
            problems.append(Problem(f"`{brief(name)}` cannot be a variable's name", key.where, hint=hint))
        elif isinstance(node.value, dict | list):
            problems.append(Problem(f"the variable `{name}` must be one text, number or boolean", node.where))
        elif isinstance(node.value, str) and "${" in node.value:
            problems.append(Problem(f"the variable `{name}` cannot be made of others", node.where))
        else:
            values[name] = node.value
    for name, text in settings.items():
        if name not in entries:
            continue
        try:
            values[name] = setting(text)
        except ValueError as e:
            problems.append(Problem(f"`--set {name}={brief(text)}`: {e}"))
    return Variables(values), problems


def setting(text: str) -> Scalar:
    """The value of `--set NAME=text`: a YAML scalar; quotes make it a string. A `ValueError` when it is neither."""
    if text[:1] not in ("'", '"'):
        return resolve(text)
    from pathlib import Path

    node, problems = parse(text.encode("utf-8", "replace"), Path("--set"), "--set")
    if problems or node is None or not isinstance(node.value, str):
        raise ValueError("the quotes do not match")
    return node.value
