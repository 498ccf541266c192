"""`modelbuild status`: which targets are up to date."""

from __future__ import annotations

import sys

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, targets_argument
from modelbuild.decide import Decider, Decision
from modelbuild.project import Project
from modelbuild.report import amounts
from modelbuild.report.color import styled, wanted

WORDS = {
    "fresh": ("up to date", "green"),
    "restore": ("made before", "green"),
    "build": ("stale", "yellow"),
    "maybe": ("maybe stale", "yellow"),
    "blocked": ("blocked", "red"),
}


@click.command("status")
@targets_argument
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], as_json: bool) -> None:
    """Show which of the TARGETs (default: all) and of what they need are up to date.

    Reads files whose stat changed, builds nothing.
    """
    names = project.graph.closure(project.select(patterns) if patterns else project.graph.nodes)
    decisions = Decider(project.graph, project.store).survey(names)
    if as_json:
        echo_json([_row(d) for d in decisions])
        return
    color = wanted(sys.stdout)
    rows = []
    for d in decisions:
        word, style = WORDS[d.action]
        size = amounts.size(d.record.size) if d.record else ""
        built = amounts.ago(d.record.built_at) if d.record else ""
        cause = [p.title for p in d.problems] or list(d.reasons[:1])
        shown = _shown(cause[0]) if cause else ""
        rows.append((styled(f"{word:11}", style, color), d.target, size, built, shown))
    for line in amounts.table(rows):
        click.echo(line, color=color)


def _shown(cause: str) -> str:
    from modelbuild.report.errors import safe  # not loaded where all is up to date

    return safe(cause)


def _row(d: Decision) -> dict[str, object]:
    return {
        "target": d.target,
        "state": d.action,
        "reasons": d.reasons,
        "key": d.key,
        "digest": d.record.digest if d.record else None,
        "size": d.record.size if d.record else None,
        "built_at": d.record.built_at if d.record else None,
        "problems": d.problems,
    }
