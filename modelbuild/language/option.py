"""One option of a target: from the node as written to a checked value, with the references and paths in it."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from modelbuild import kind
from modelbuild.errors import Problem, ProblemError, Span, problem
from modelbuild.kind import FieldRole
from modelbuild.language.mismatch import explain
from modelbuild.language.node import Entry, Node, brief
from modelbuild.language.sections import is_inside, unknown_keys
from modelbuild.language.variables import Variables

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""What a model or target may be called; a name is a file name below `artifacts/`."""
VALUE = re.compile(r"[A-Za-z0-9_.+-]{1,100}")
"""A matrix value, as it stands in a variant's name."""
_AXIS = rf"\s*[A-Za-z_][A-Za-z0-9_-]*\s*=\s*{VALUE.pattern}\s*"
REFERENCE = re.compile(rf"(?:{NAME.pattern}:)?{NAME.pattern}(?:\[{_AXIS}(?:,{_AXIS})*\])?")
"""`target`, `recipe:target`, `target[axis=value,...]`."""


class Reference(msgspec.Struct, frozen=True):
    """A target named in a `Ref` field, as written; whether there is such a target is the graph's question."""

    field: str
    text: str
    where: Span


class SourceRef(msgspec.Struct, frozen=True):
    """A file or folder that a target reads. `path` is absolute and normalised for a source, as written for a package.

    Whether it exists is not checked here.
    """

    field: str
    role: Literal["source", "package"]
    text: str
    path: Path
    where: Span


class Option(msgspec.Struct, frozen=True):
    """A checked value, and where its name was written."""

    value: Any
    where: Span
    references: tuple[Reference, ...] = ()
    sources: tuple[SourceRef, ...] = ()


class KindOptions(msgspec.Struct, frozen=True):
    """What checking needs of a kind: its `Spec`, and what each option means."""

    name: str
    spec: type[msgspec.Struct]
    roles: dict[str, FieldRole]


def load_kind(name: str, where: Span) -> KindOptions:
    """A kind by name; a `ProblemError` at `where` when there is none or it cannot be loaded."""
    try:
        module = kind.load(name)
        return KindOptions(name, module.Spec, {f.name: f for f in kind.fields(module.Spec)})
    except ProblemError as e:
        raise ProblemError(*(p.replacing(where=where) for p in e.problems)) from None


def unknown_options(entries: dict[str, Entry], loaded: KindOptions) -> list[Problem]:
    """A problem for each name that is no option of the kind."""
    title = f"unknown option `{{}}` of kind `{loaded.name}`"
    hint = f"`modelbuild kinds {loaded.name}` describes the options"
    return unknown_keys(entries, loaded.roles, title, hint)


def check(role: FieldRole, entry: Entry, variables: Variables, project: Path) -> Option:
    """The option as its kind's type has it; a `ProblemError` when it does not fit."""
    key, node = entry
    written = variables.value(node)
    if not _finite(written):
        title = f"option `{role.name}` holds a number that is not finite"
        raise problem(title, where=node.where, hint="leave the option out for no limit, where it allows that")
    try:
        value = msgspec.convert(written, role.type, str_keys=True)
    except msgspec.ValidationError as e:
        raise ProblemError(explain(f"option `{role.name}`", written, role.type, node, e)) from None
    if role.role == "option" or value is None:
        return Option(value, key.where)
    items = list(zip(written, node.value, strict=True)) if isinstance(node.value, list) else [(written, node)]
    if role.role == "ref":
        return Option(value, key.where, tuple(reference(role.name, text, at) for text, at in items))
    return Option(value, key.where, (), tuple(_source(role, text, at, project) for text, at in items))


def _finite(value: Any) -> bool:
    """Whether every number is: keys and jobs are JSON, which would turn the others into null."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def reference(field: str, text: Any, node: Node) -> Reference:
    """A reference, checked for its form alone; a `ProblemError` when it has not that of one."""
    if isinstance(text, str) and REFERENCE.fullmatch(text):
        return Reference(field, text, node.where)
    shown = brief(text) if isinstance(text, str) else brief(node.text or "")
    hint = "write `target`, `recipe:target` or `target[option=value]`"
    raise problem(f"`{shown}` cannot be the name of a target", where=node.where, hint=hint)


def _source(role: FieldRole, text: str, node: Node, project: Path) -> SourceRef:
    if "\0" in text:
        raise problem("a path cannot hold a NUL character", where=node.where)
    if role.role == "package":
        return SourceRef(role.name, "package", text, _package(text, node), node.where)
    return SourceRef(role.name, "source", text, _path(role, text, node, project), node.where)


def _package(text: str, node: Node) -> Path:
    path = Path(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        hint = "write `package/folder`, without `..`"
        raise problem(f"`{brief(text)}` is no folder of a package", where=node.where, hint=hint)
    return path


def _path(role: FieldRole, text: str, node: Node, project: Path) -> Path:
    folder = node.file.path.parent
    if role.anywhere:
        try:
            at_home = str(Path(text).expanduser()) if text.startswith("~") else text
        except RuntimeError:
            raise problem(f"there is no home folder for `{brief(text)}`", where=node.where) from None
        path = Path(os.path.normpath(folder / at_home))
        if at_home != text or Path(text).is_absolute() or is_inside(path, project):
            return path
        hint = "a path outside the project must be absolute or start with `~`"
    else:
        path = Path(os.path.normpath(folder / text))
        if not Path(text).is_absolute() and is_inside(path, project):
            return path
        hint = "paths are relative to the recipe and stay inside the project"
        if Path(text).is_absolute() and is_inside(path, project):
            hint = f"write `{os.path.relpath(path, folder)}`"
            raise problem(f"option `{role.name}`: the path is absolute", where=node.where, hint=hint)
    leads = () if not path.is_relative_to(project) else (("leads to", os.path.realpath(path)),)
    raise ProblemError(
        Problem(f"option `{role.name}`: `{brief(text)}` is outside the project", node.where, leads, hint)
    )
