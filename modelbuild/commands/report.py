"""`modelbuild report`: what was measured of the targets, beside each other and beside what they were before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from modelbuild import explain
from modelbuild.commands.options import echo_json, json_option, opens_project, targets_argument
from modelbuild.commands.status import WORDS
from modelbuild.decide import Decider, Decision
from modelbuild.errors import problem
from modelbuild.project import Project
from modelbuild.record import Record
from modelbuild.report import amounts, figures, jsonl, markdown
from modelbuild.report.figures import Measured
from modelbuild.report.sections import Section, sections

USUAL = ("cosine", "accuracy", "f1", "exact_match", "wer", "perplexity", "pearson", "spearman")
"""Figures with a column of their own wherever a target has them; others have one where something asks for them."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A target in the report; `before` is what it was before its last build, or in the report it is compared with."""

    target: str
    kind: str
    state: str
    key: str | None = None
    now: Measured | None = None
    before: Measured | None = None


class Earlier(msgspec.Struct, frozen=True):
    """A report as `--json` wrote it."""

    targets: tuple[Entry, ...]


@click.command("report")
@targets_argument
@click.option(
    "--against", type=click.Path(path_type=Path, dir_okay=False), help="Compare with a report that --json wrote."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file; `-` is stdout."
)
@json_option
@opens_project
def command(
    project: Project, patterns: tuple[str, ...], against: Path | None, output: Path | None, as_json: bool
) -> None:
    """Put what was measured of the TARGETs (default: all) beside each other, as Markdown.

    Sizes, figures, requirements, benchmarks with the machine they hold for, and the order of candidates, each with the
    change since what the target was before its last build, as far as the store still has that. Builds nothing. Where
    $GITHUB_STEP_SUMMARY is set, the tables are added to that file, too.
    """
    names = project.select(patterns) if patterns else project.graph.closure(project.graph.nodes)
    earlier = {e.target: e.now for e in _read(against).targets} if against else None
    decisions = {d.target: d for d in Decider(project.graph, project.store).survey(project.graph.closure(names))}
    entries = [_entry(project, decisions[name], earlier) for name in names]
    text = markdown_of(entries)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)
    if output is not None and str(output) != "-":
        whole = msgspec.json.format(jsonl.text({"targets": entries}), indent=2) + "\n" if as_json else text
        output.write_text(whole, encoding="utf-8")
    elif as_json:
        echo_json({"targets": entries})
    else:
        click.echo(text, nl=False)


def _read(path: Path) -> Earlier:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Earlier)
    except (ValueError, RecursionError) as e:
        raise problem(f"`{path}` is no report", cause=e, hint="`modelbuild report --json -o FILE` writes one") from None


def _entry(project: Project, decision: Decision, earlier: Mapping[str, Measured | None] | None) -> Entry:
    node = project.graph.nodes[decision.target]
    record = decision.record or explain.last_made(project.store, node)
    now = _measured(project, record)
    if earlier is not None:
        before = earlier.get(decision.target)
    else:
        before = _measured(project, explain.made_before(project.store, node, record.key) if record else None)
    key = record.key if record and now else None
    return Entry(decision.target, node.kind, WORDS[decision.action][0], key, now, before)


def _measured(project: Project, record: Record | None) -> Measured | None:
    """What was measured of an artifact; None for one that is gone, or that is not as it was made."""
    if record is None or project.store.damage(record):
        return None
    return figures.of(record, project.store.out(record.key))


def markdown_of(entries: Sequence[Entry]) -> str:
    """The whole report."""
    columns = _columns(entries)
    rows = []
    for entry in entries:
        now, before = entry.now, entry.before
        size = amounts.size(now.size) if now else ""
        grown = figures.percent(before.size if before else None, now.size if now else None)
        cells = [_with(size, grown)]
        for name in columns:
            value, old = (made.figures.get(name) if made else None for made in (now, before))
            cells.append(_with(figures.number(value), figures.change(old, value)))
        rows.append((markdown.code(entry.target), entry.state, *cells))
    parts = [
        "### modelbuild report",
        "",
        *markdown.table(("target", "state", "size", *map(markdown.code, columns)), rows),
    ]
    for entry in entries:
        for section in sections(entry.now, entry.before) if entry.now else ():
            stale = "" if entry.state in (WORDS["fresh"][0], WORDS["restore"][0]) else f" ({entry.state})"
            parts += ["", f"#### {markdown.code(entry.target)}: {section.title}{stale}", ""]
            parts += [markdown.shown(section.note), ""] if section.note else []
            head = [markdown.code(name) if name in section.labels else name for name in section.head]
            parts += markdown.table(head, [_cells(section, row) for row in section.rows])
    return "\n".join([*parts, ""])


def _columns(entries: Sequence[Entry]) -> list[str]:
    """The figures with a column, as far as targets have them: the usual ones, then what is required or ordered by."""
    have = {name for e in entries if e.now for name in e.now.figures}
    return [name for name in dict.fromkeys((*USUAL, *_asked(entries))) if name in have]


def _asked(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        if entry.now:
            yield from (name for name in entry.now.bounds if "." not in name)
            yield from (label for place in entry.now.places for label in place.figures)


def _cells(section: Section, row: Sequence[str]) -> list[str]:
    """A row's cells as Markdown: names as code, what others wrote without markup, figures as they are."""
    ways = {"figure": markdown.code, "model": markdown.code, "why": markdown.shown}
    return [ways.get(head, str)(cell) for head, cell in zip(section.head, row, strict=True)]


def _with(value: str, change: str) -> str:
    return f"{value} ({change})" if change else value
