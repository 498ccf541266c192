"""Events on a terminal: finished lines above, a progress bar for each running build below."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from modelbuild import events
from modelbuild.report.errors import safe
from modelbuild.report.plain import Lines


class Bars:
    """A sink for a terminal; use it as a context manager, so that the screen is left tidy."""

    def __init__(self, color: bool) -> None:
        self.console = Console(file=sys.stderr, no_color=not color, highlight=False)
        self.lines = Lines(sys.stderr, color, progress=False)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: events.AnyEvent) -> None:
        match event:
            case events.Started(target):
                self._bars[target] = self.progress.add_task(escape(target), total=None, share="")
            case events.Progressed(target, done, total, what) if target in self._bars:
                self.progress.update(
                    self._bars[target],
                    description=f"{escape(target)}: {escape(safe(what))}",
                    total=total,
                    completed=done,
                    share=f"{done / total:.0%}" if total else "",
                )
            case events.Built(target) | events.Failed(target) if target in self._bars:
                self.progress.remove_task(self._bars.pop(target))
            case _:
                pass
        for line in self.lines.lines(event):
            self.console.out(line)
