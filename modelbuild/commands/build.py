"""`modelbuild build`: bring targets up to date."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from modelbuild import events
from modelbuild.commands.options import json_option, opens_project, targets_argument
from modelbuild.decide import Decider
from modelbuild.errors import ProblemError
from modelbuild.project import Project
from modelbuild.report.color import wanted


@click.command("build")
@targets_argument
@click.option("-j", "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Builds at a time.")
@click.option("-k", "--keep-going", is_flag=True, help="Build what does not need what failed.")
@click.option("--verify", is_flag=True, help="Read every artifact back instead of trusting its unchanged stat.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but failures.")
@json_option
@opens_project
def command(
    project: Project,
    patterns: tuple[str, ...],
    jobs: int,
    keep_going: bool,
    verify: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Bring TARGETs up to date, and only what is stale under them.

    A TARGET is `recipe:target`, a target of any recipe, or a recipe, with `*` and `?`; none means every recipe's
    default targets. Exits 1 when a build failed, 2 when one could not be tried.
    """
    names = project.select(patterns)
    started = time.monotonic()
    tally = Tally()
    with _report(quiet, as_json) as report:

        def sink(event: events.AnyEvent) -> None:
            tally(event)
            report(event)

        decider = Decider(project.graph, project.store, verify=verify)
        code = _bring(project, decider, names, sink, jobs, keep_going)
    if not quiet and not as_json:
        click.echo(tally.summary(time.monotonic() - started), err=True)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        from modelbuild.report.markdown import summary

        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
            file.write(summary(tally.happened))
    return code


def _bring(
    project: Project, decider: Decider, names: tuple[str, ...], sink: events.Sink, jobs: int, keep_going: bool
) -> int:
    """Run what a survey finds stale: doit and the rebuilder are loaded only when something is."""
    surveyed = decider.survey(project.graph.closure(names))
    blocked = tuple(p for d in surveyed for p in d.problems)
    if blocked and not keep_going:
        raise ProblemError(*blocked)
    for decision in surveyed:
        if decision.action == "fresh":
            sink(events.Fresh(decision.target, decision.key or ""))
    stale = [d.target for d in surveyed if d.action != "fresh"]
    if not stale:
        return 0
    from modelbuild import tasks
    from modelbuild.rebuild import Rebuilder

    project.store.prepare()
    return tasks.run(Rebuilder(decider, sink), stale, jobs=jobs, keep_going=keep_going)


class Tally:
    """Counts what happened, for the last line and the CI summary."""

    def __init__(self) -> None:
        self.happened: list[events.AnyEvent] = []

    def __call__(self, event: events.AnyEvent) -> None:
        if not isinstance(event, events.Progressed | events.Said):
            self.happened.append(event)

    def count(self, kind: type[events.Event]) -> int:
        return sum(isinstance(e, kind) for e in self.happened)

    def summary(self, wall_s: float) -> str:
        """`minilm: 2 built, 4 up to date in 3.1 s`."""
        from modelbuild.report.amounts import seconds

        words = (
            (events.Failed, "failed"),
            (events.Skipped, "skipped"),
            (events.Built, "built"),
            (events.Restored, "restored"),
            (events.Fresh, "up to date"),
        )
        counts = [f"{n} {word}" for kind, word in words if (n := self.count(kind))]
        return f"{', '.join(counts) or 'nothing to do'} in {seconds(wall_s)}"


@contextmanager
def _report(quiet: bool, as_json: bool) -> Iterator[Callable[[events.AnyEvent], None]]:
    """The sink that suits where the output goes: JSON lines, bars on a terminal, plain lines elsewhere."""
    if as_json:
        from modelbuild.report.jsonl import write

        yield write
    elif quiet:
        from modelbuild.report.plain import Lines

        lines = Lines(sys.stderr, wanted(sys.stderr))
        yield lambda event: lines(event) if isinstance(event, events.Failed) else None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _Deferred() as live:
            yield live
    else:
        from modelbuild.report.plain import Lines

        with nullcontext(Lines(sys.stderr, wanted(sys.stderr))) as plain:
            yield plain


class _Deferred:
    """A live display that starts with the first event that is worth one: a run with nothing to do loads no bars."""

    def __init__(self) -> None:
        self._bars: object = None

    def __enter__(self) -> _Deferred:
        return self

    def __exit__(self, *error: object) -> None:
        from modelbuild.report.live import Bars

        if isinstance(self._bars, Bars):
            self._bars.__exit__(None, None, None)

    def __call__(self, event: events.AnyEvent) -> None:
        if self._bars is None and isinstance(event, events.Fresh):
            return
        from modelbuild.report.live import Bars

        if not isinstance(self._bars, Bars):
            self._bars = Bars(wanted(sys.stderr)).__enter__()
        self._bars(event)
