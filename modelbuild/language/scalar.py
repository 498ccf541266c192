"""What a plain YAML word means: the scalars of YAML 1.2's core schema, read and written.

https://yaml.org/spec/1.2.2/#103-core-schema. `no` and `on` are strings, `1e-3` is a number, and nothing is a date.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_STARTS_A_NUMBER = frozenset("0123456789+-.")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = (".nan", ".NaN", ".NAN")

LONGEST_NUMBER = 400
"""Digits beyond this are refused before Python's own limit on parsing them."""
INT_RANGE = (-(2**63), 2**64 - 1)
"""What every reader of our JSON files can hold."""


def resolve(text: str) -> Scalar:
    """The value of a plain scalar; a `ValueError` for a number too large to hold."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _STARTS_A_NUMBER:
        return text
    return _number(text)


def _number(text: str) -> Scalar:
    if _INT.fullmatch(text):
        return _in_range(text, 10)
    if _OCTAL_OR_HEX.fullmatch(text):
        return _in_range(text, 0)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError("the number is too large")
        return value
    if found := _INFINITE.fullmatch(text):
        return float(found[1] + "inf")
    return float("nan") if text in _NAN else text


def _in_range(text: str, base: int) -> int:
    value = int(text, base) if len(text) <= LONGEST_NUMBER else None
    if value is None or not INT_RANGE[0] <= value <= INT_RANGE[1]:
        raise ValueError("the number is too large")
    return value


def canonical(value: Scalar) -> str:
    """The one text of a value: `true`, `1`, `0.5`, `.inf`, `null`, and a string as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    return str(value)
