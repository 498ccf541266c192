"""The reference page of a kind, made from its module alone: docstring, options, tools."""

from __future__ import annotations

import json
import types
import typing
from typing import Annotated, Any, Literal

import msgspec

from modelbuild import kind
from modelbuild.kind import FieldRole, Kind

ROLES = {"ref": "target", "source": "path", "package": "package folder"}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", dict: "map"}


def page(name: str, module: Kind) -> str:
    """The kind's page as Markdown."""
    lines = [f"# `{name}`", "", (module.__doc__ or "").strip(), "", "## Options", ""]
    lines += ["| option | value | default | |", "| --- | --- | --- | --- |"]
    defaults = {f.encode_name: f for f in msgspec.structs.fields(module.Spec)}
    for role in kind.fields(module.Spec):
        cells = (f"`{role.name}`", value(role), _default(defaults[role.name]), description(role.type))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    tools = ", ".join(f"`{tool}`" for tool in sorted(module.TOOLS)) or "none"
    extras = sorted(set(module.TOOLS.values()) - {""})
    install = f" Install: `pip install 'modelbuild[{','.join(extras)}]'`." if extras else ""
    lines += ["", f"Version {module.VERSION}. Tools whose versions enter the key: {tools}.{install}"]
    if module.HARDWARE:
        lines.append(f"Hardware facts in the key: {', '.join(module.HARDWARE)}.")
    return "\n".join(lines) + "\n"


def summary(module: Kind) -> str:
    """The first line of a kind's docstring."""
    return (module.__doc__ or "").strip().partition("\n")[0]


def value(role: FieldRole) -> str:
    """What a field takes, in words."""
    if role.role != "option":
        return ROLES[role.role] + (", or a list of them" if role.many else "")
    return _words(role.type)


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " · ".join(f"`{a}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments if a is not type(None))
    if origin in (list, tuple):
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"map of {_words(arguments[0])} to {_words(arguments[1])}"
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "**required**"
    given = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "" if given is None or given == () or given == [] else f"`{json.dumps(msgspec.to_builtins(given))}`"


def description(hint: Any) -> str:
    """The description in a type's `msgspec.Meta`, the outermost first."""
    if typing.get_origin(hint) is Annotated:
        for mark in reversed(typing.get_args(hint)[1:]):
            if isinstance(mark, msgspec.Meta) and mark.description:
                return mark.description
        return description(typing.get_args(hint)[0])
    for inner in typing.get_args(hint):
        found = description(inner)
        if found:
            return found
    return ""
