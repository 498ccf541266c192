"""A run as a Markdown table, for CI's job summary."""

from __future__ import annotations

from collections.abc import Iterable

from modelbuild import events
from modelbuild.report import amounts


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
    return "<br>".join(line.replace("|", "\\|") for line in lines)
