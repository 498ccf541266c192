"""A run as a Markdown table, for CI's job summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from modelbuild import events
from modelbuild.report import amounts
from modelbuild.report.errors import safe

_MARKUP = re.compile(r"[`&<>@\\*_~#\[\]()!]|:(?=//)")


def summary(happened: Iterable[events.AnyEvent]) -> str:
    """One row per target: what was done, how long it took, how big it is, and why."""
    started: dict[str, tuple[str, ...]] = {}
    rows = []
    for event in happened:
        match event:
            case events.Started(target, _, reasons):
                started[target] = reasons
            case events.Built(target, _, _, size, wall_s, _, changed):
                done = "built" if changed else "built, same output"
                rows.append((target, done, amounts.seconds(wall_s), amounts.size(size), _cell(started.get(target, ()))))
            case events.Restored(target, _, reasons):
                rows.append((target, "restored", "", "", _cell(reasons)))
            case events.Fresh(target):
                rows.append((target, "up to date", "", "", ""))
            case events.Failed(target, problems):
                rows.append((target, "**failed**", "", "", _cell(tuple(p.title for p in problems))))
            case events.Skipped(target, because):
                rows.append((target, "skipped", "", "", _cell(tuple(f"needs {b}" for b in because))))
            case _:
                pass
    head = ["### modelbuild", "", "| target | | time | size | why |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in rows), ""])


def _cell(lines: tuple[str, ...]) -> str:
    return "<br>".join(map(shown, lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, its columns aligned for those who read it as it is; cells are Markdown already."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), line("-" * width for width in widths), *map(line, rows)]


def code(name: str) -> str:
    """A name as code, or as plain text where it holds what would end that."""
    return shown(f"`{name}`") if "`" not in name and name else shown(name)


def shown(line: str) -> str:
    """A line that shows as it is: quoted names as code, else no markup, mention or image, and no end of the cell."""
    parts = safe(line).split("`")
    if len(parts) % 2 == 0 or "" in parts[1:-1] or "\\|" in line:  # not names in single back-ticks
        return _plain("`".join(parts))
    return "`".join(p.replace("|", "\\|") if i % 2 else _plain(p) for i, p in enumerate(parts))


def _plain(text: str) -> str:
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text).replace("|", "\\|")
