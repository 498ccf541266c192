"""`modelbuild diff`: two artifacts beside each other."""

from __future__ import annotations

import click

from modelbuild import manifest
from modelbuild.commands.options import complete_target, echo_json, json_option, opens_project, say
from modelbuild.commands.show import measured, record_of
from modelbuild.errors import problem
from modelbuild.names import KEY
from modelbuild.project import Project
from modelbuild.record import Record
from modelbuild.report import amounts, figures


@click.command("diff")
@click.argument("a", shell_complete=complete_target)
@click.argument("b", shell_complete=complete_target)
@json_option
@opens_project
def command(project: Project, a: str, b: str, as_json: bool) -> None:
    """Compare the artifacts A and B (targets, or keys as `show` prints them): how they were made, and what came out."""
    left, right = _record(project, a), _record(project, b)
    changes = manifest.diff(left.manifest, right.manifest)
    found = measured(project, left).figures, measured(project, right).figures
    files = {f.path: f.digest for f in left.files}, {f.path: f.digest for f in right.files}
    differing = sorted(p for p in files[0].keys() | files[1].keys() if files[0].get(p) != files[1].get(p))
    if as_json:
        echo_json(
            {
                "a": left.key,
                "b": right.key,
                "same_content": left.digest == right.digest,
                "made": changes,
                "figures": {n: [found[0].get(n), found[1].get(n)] for n in _names(found)},
                "files": differing,
            }
        )
        return
    grown = figures.percent(left.size, right.size)
    rows = [("", a, b, "change"), ("size", amounts.size(left.size), amounts.size(right.size), grown)]
    rows += [_row(n, found[0].get(n), found[1].get(n)) for n in _names(found)]
    rows += [(c.fact, _short(c.old), _short(c.new), "") for c in changes]
    for line in amounts.table(rows):
        say(line)
    say("same content" if not differing else f"files that differ: {', '.join(differing)}")


def _record(project: Project, text: str) -> Record:
    if KEY.fullmatch(text):
        record = project.store.record(text)
        if record is None:
            raise problem(f"the store has no artifact with key `{text}`")
        return record
    return record_of(project, project.one(text))


def _names(found: tuple[dict[str, float], dict[str, float]]) -> list[str]:
    return sorted(found[0].keys() | found[1].keys())


def _row(name: str, old: float | None, new: float | None) -> tuple[str, str, str, str]:
    return name, figures.number(old), figures.number(new), figures.change(old, new)


def _short(value: str | None) -> str:
    return (value or "")[:40]
