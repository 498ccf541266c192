"""Why a value does not fit the type of its option, in plain words and at the very value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from modelbuild.errors import Problem, suggestion
from modelbuild.language.node import Node, brief
from modelbuild.language.scalar import canonical

_PLACE = re.compile(r" - at (?:`(?:key|value)` in )?`\$(.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "a map",
    "null": "empty",
}


def explain(title: str, value: Any, hint: Any, node: Node, error: msgspec.ValidationError) -> Problem:
    """The problem of an option: `error` is what `convert(value, hint)` raised, `node` is where `value` was written.

    `title` names the option: the problem's title is `{title} must be ...`.
    """
    message = str(error)
    place = _PLACE.search(message)
    message = message[: place.start()] if place else message
    steps = list(_steps(place[1], value, hint)) if place else []
    node, found = _follow(node, value, steps)
    types = list(_types_at(inspect.type_info(hint), steps))
    inner = _path_text(steps)
    subject = f"{title}: `{inner}`" if inner else title
    if found_field := re.fullmatch(r"Object contains unknown field `(.*)`", message):
        return _unknown_field(subject, found_field[1], types, node)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return Problem(f"{subject} lacks `{missing[1]}`", node.where)
    words = [value for t in types if isinstance(t, inspect.LiteralType | inspect.EnumType) for value in _values(t)]
    as_written = isinstance(found, int | float) and node.text and "${" not in node.text
    facts = (("found", f"`{brief(node.text or '')}`" if as_written else describe(found)),)
    if words and message.startswith(("Invalid enum", "Expected")):
        known = (("known", ", ".join(words)),)
        close = suggestion(found, words) if isinstance(found, str) else None
        return Problem(f"{subject} has no value `{brief(_short(found))}`", node.where, known, close)
    advice = None
    if "`str" in message and isinstance(found, int | float) and node.text:
        advice = f'for text that looks like something else, write quotes: "{brief(node.text)}"'
    if "`bool" in message and isinstance(found, str) and found.lower() in ("yes", "no", "on", "off", "y", "n"):
        advice = f"`{found}` is text in YAML 1.2: write `true` or `false`"
    return Problem(f"{subject} must be {_expected(message)}", node.where, facts, advice)


def describe(value: Any) -> str:
    """A value in a few plain words."""
    if isinstance(value, dict):
        return f"a map of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return canonical(value)
    what = "the text" if isinstance(value, str) else "the number"
    return f"{what} `{brief(_short(value))}`"


def _short(value: Any) -> str:
    return canonical(value) if not isinstance(value, dict | list) else describe(value)


def _steps(path: str, value: Any, hint: Any) -> Iterator[str | int]:
    """The keys and indices of msgspec's path; `[...]`, any value of a map, is found by trying each alone."""
    for index, (key, position) in enumerate(_STEP.findall(path)):
        if key:
            step: str | int = key
        elif position == "...":
            step = _culprit(path, index, value, hint)
        else:
            step = int(position)
        yield step
        value = _child(value, step)


def _culprit(path: str, index: int, value: Any, hint: Any) -> str | int:
    """The key of a map whose value is at fault. Only a top-level map of an option is told apart: others get the map."""
    if index == 0 and isinstance(value, dict):
        for key, child in value.items():
            try:
                msgspec.convert({key: child}, hint, str_keys=True)
            except msgspec.ValidationError:
                return str(key)
    return ""


def _child(value: Any, step: str | int) -> Any:
    try:
        return value[step]
    except (KeyError, IndexError, TypeError):
        return None


def _follow(node: Node, value: Any, steps: list[str | int]) -> tuple[Node, Any]:
    for step in steps:
        below = node.value
        if isinstance(below, list) and isinstance(step, int) and step < len(below):
            node = below[step]
        elif isinstance(below, dict) and step in below:
            node = below[str(step)][1]
        else:
            break
        value = _child(value, step)
    return node, value


def _path_text(steps: list[str | int]) -> str:
    text = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps if s != "")
    return text.removeprefix(".")


def _types_at(info: inspect.Type, steps: list[str | int]) -> Iterator[inspect.Type]:
    """The types that the type allows at a path, unions taken apart."""
    if isinstance(info, inspect.UnionType):
        for member in info.types:
            yield from _types_at(member, steps)
    elif isinstance(info, inspect.Metadata):
        yield from _types_at(info.type, steps)
    elif not steps:
        yield info
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            if field.encode_name == steps[0]:
                yield from _types_at(field.type, steps[1:])
    elif isinstance(info, inspect.DictType):
        yield from _types_at(info.value_type, steps[1:])
    elif isinstance(info, inspect.TupleType):
        if isinstance(steps[0], int) and steps[0] < len(info.item_types):
            yield from _types_at(info.item_types[steps[0]], steps[1:])
    elif isinstance(info, inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType):
        yield from _types_at(info.item_type, steps[1:])


def _values(info: inspect.Type) -> list[str]:
    if isinstance(info, inspect.LiteralType):
        return [canonical(v) for v in info.values]
    return [str(v.value) for v in info.cls] if isinstance(info, inspect.EnumType) else []


def _unknown_field(subject: str, name: str, types: list[inspect.Type], node: Node) -> Problem:
    known = [f.encode_name for t in types if isinstance(t, inspect.StructType) for f in t.fields]
    where = node.where
    if node.entries and name in node.entries:
        where = node.entries[name][0].where
    return Problem(
        f"{subject} has no part `{brief(name)}`", where, (("known", ", ".join(known)),), suggestion(name, known)
    )


def _expected(message: str) -> str:
    """What msgspec expected, in words: `Expected `int | null`, got `str`` gives `a whole number or empty`."""
    types = re.match(r"Expected `([^`]*)`(.*)", message)
    if types is None:
        return message[:1].lower() + message[1:]
    words = [_WORDS.get(name, f"`{name}`") for name in types[1].split(" | ")]
    limits = re.sub(r", got `.*`$", "", types[2]).replace("`", "").strip()
    limits = re.sub(r"(\d)\.0$", r"\1", limits)
    text = " or ".join(words)
    if limits in ("of length >= 1", "matching regex '.+'") and types[1] in ("str", "array", "object"):
        return f"{text}, and not empty"
    return f"{text} {limits}".replace(">=", "of at least").replace("<=", "of at most").strip()
