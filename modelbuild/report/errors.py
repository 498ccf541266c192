"""The one text form of problems: title, place with the line and a caret, aligned facts, hint.

Whatever a user or a file gave is made safe to print: control and direction-changing characters are shown escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import msgspec

from modelbuild.errors import Problem, Span

WIDEST = 100
"""Columns of a source line that are shown; a longer one is clipped around the caret."""
BEFORE = 30
"""Columns kept before the caret of a clipped line."""
TAB = "    "
PLACES = 6
"""Further places of one problem that are listed."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_RED, _BLUE, _CYAN, _BOLD, _OFF = "\x1b[1;31m", "\x1b[1;34m", "\x1b[1;36m", "\x1b[1m", "\x1b[0m"


def render(problems: Iterable[Problem], color: bool) -> str:
    """The text of problems, a blank line between them, with a newline at the end; empty for none.

    Problems that differ in nothing but their place are told once, with all places.
    """
    alike: dict[tuple[object, ...], list[Problem]] = {}
    for p in problems:
        alike.setdefault((p.title, p.facts, p.hint), []).append(p)
    return "\n".join(_problem(_with_places(first, rest), color) for first, *rest in alike.values())


def _with_places(p: Problem, others: Sequence[Problem]) -> Problem:
    places = [f"{o.where}" for o in others if o.where is not None]
    if not places:
        return p
    more = f" and {len(places) - PLACES:,} more" if len(places) > PLACES else ""
    return msgspec.structs.replace(p, facts=(*p.facts, ("also at", ", ".join(places[:PLACES]) + more)))


def safe(text: str) -> str:
    r"""The text with control characters, direction marks and lone surrogates as `\x1b`, `\u202e`, ..."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )


def _problem(p: Problem, color: bool) -> str:
    lines = [f"{_paint('error:', _RED, color)} {_paint(safe(p.title), _BOLD, color)}"]
    if p.where is not None:
        lines += _place(p.where, color)
    labelled = [(safe(label), value, "") for label, value in p.facts]
    if p.hint:
        labelled.append(("hint", p.hint, _CYAN))
    widest = max((len(label) for label, _, _ in labelled), default=0)
    for label, value, paint in labelled:
        first, *more = value.splitlines() or [""]
        head = f"{label}:"
        lines.append(f"  {_paint(head, paint, color)}{' ' * (widest + 2 - len(head))}{safe(first)}".rstrip())
        lines += [f"  {' ' * (widest + 2)}{safe(line)}".rstrip() for line in more]
    return "\n".join(lines) + "\n"


def _paint(text: str, code: str, color: bool) -> str:
    return f"{code}{text}{_OFF}" if color and code else text


def _place(where: Span, color: bool) -> list[str]:
    number = str(where.line)
    margin = " " * len(number)
    arrow = f"{margin}{_paint('-->', _BLUE, color)} {safe(where.path)}:{where.line}:{where.column}"
    if not where.text.strip():
        return [arrow]
    text, offset, width = excerpt(where)
    bar = _paint(f"{margin} |", _BLUE, color)
    return [
        arrow,
        bar,
        f"{_paint(f'{number} |', _BLUE, color)} {text}".rstrip(),
        f"{bar} {' ' * offset}{_paint('^' * width, _RED, color)}",
    ]


def excerpt(where: Span) -> tuple[str, int, int]:
    """The source line as shown, the columns before the caret, and how many columns the caret covers."""
    start = where.column - 1
    left = max(0, start - WIDEST) if len(where.text) > WIDEST else 0
    cells = [_cell(c) for c in where.text[left : start + WIDEST + 1]]
    clipped_left, clipped_right = left > 0, len(where.text) > start + WIDEST + 1
    offset = _columns(cells[: start - left]) + max(0, start - left - len(cells))
    width = _columns(cells[start - left : start - left + where.width])
    if clipped_left or clipped_right or _columns(cells) > WIDEST:
        while cells and offset > BEFORE and _columns(cells) + (offset - BEFORE > 0) > WIDEST:
            offset -= cells.pop(0)[1]
            clipped_left = True
        while cells and _columns(cells) > WIDEST:
            cells.pop()
            clipped_right = True
    text = "".join(shown for shown, _ in cells)
    if clipped_left:
        text, offset = "…" + text, offset + 1
    room = max(1, _columns(cells) + clipped_left - offset)
    return text + ("…" if clipped_right else ""), offset, min(max(width, 1), room)


def _cell(character: str) -> tuple[str, int]:
    """A character as printed, and how many columns it takes."""
    if character == "\t":
        return TAB, len(TAB)
    if _UNSAFE.match(character):
        shown = _escaped(character)
        return shown, len(shown)
    if unicodedata.category(character) in ("Mn", "Me"):
        return character, 0
    return character, 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _columns(cells: Sequence[tuple[str, int]]) -> int:
    return sum(width for _, width in cells)
