"""Events as plain lines, one per event, for logs and CI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from modelbuild import events
from modelbuild.report import amounts
from modelbuild.report.color import styled
from modelbuild.report.errors import render, safe

PROGRESS_STEP = 0.25
"""Outside a terminal, progress is told at each quarter."""


class Lines:
    """A sink that writes a line per event to a stream. Fresh targets are silent: the summary counts them."""

    def __init__(self, stream: TextIO, color: bool, *, progress: bool = True) -> None:
        self.stream, self.color, self.progress = stream, color, progress
        self._told: dict[tuple[str, str], float] = {}

    def __call__(self, event: events.AnyEvent) -> None:
        for line in self.lines(event):
            print(line, file=self.stream, flush=True)

    def lines(self, event: events.AnyEvent) -> list[str]:
        """What an event says."""
        name = styled(event.target, "bold", self.color)
        match event:
            case events.Started(_, kind, reasons):
                because = _because(reasons)
                return [f"{self._mark('build', 'blue')} {name} ({kind}){because}"]
            case events.Waiting(_, what):
                return [f"{self._mark('wait', 'yellow')} {name}: {safe(what)}"]
            case events.Progressed(_, done, total, what):
                return self._step(event.target, done, total, what) if self.progress else []
            case events.Said(_, text):
                return [f"    {_said(line)}" for line in text.splitlines() or [""]]
            case events.Built(_, _, _, size, wall_s, _, changed):
                same = "" if changed else ", same output as before: what depends on it stands"
                figures = f"{amounts.seconds(wall_s)}, {amounts.size(size)}{same}"
                return [f"{self._mark('done', 'green')} {name} ({figures})"]
            case events.Restored(_, _, reasons):
                because = _because(reasons)
                return [f"{self._mark('restore', 'green')} {name} (made before){because}"]
            case events.Failed(_, problems):
                return [f"{self._mark('failed', 'red')} {name}", render(problems, self.color)]
            case events.Skipped(_, because):
                return [f"{self._mark('skip', 'yellow')} {name} (needs {', '.join(because)})"]
            case _:
                return []

    def _mark(self, word: str, style: str) -> str:
        return styled(f"{word:>7}", style, self.color)

    def _step(self, target: str, done: float, total: float, what: str) -> list[str]:
        share = done / total if total else 1.0
        last = self._told.get((target, what), 0.0)
        if share < 1 and share - last < PROGRESS_STEP:
            return []
        if share >= 1 and last == 0.0:
            return []
        self._told[target, what] = share
        return [f"    {_said(what)}: {share:.0%}"]


def _because(reasons: Sequence[str]) -> str:
    return "".join(f"\n    because {safe(reason)}" for reason in reasons)


def _said(line: str) -> str:
    """A line that a build said, made safe to print: GitHub obeys lines that start with `::` or hold `##[`."""
    shown = safe(line).replace("##[", r"#\x23[")
    return shown.replace("::", r"\x3a:", 1) if shown.lstrip().startswith("::") else shown
