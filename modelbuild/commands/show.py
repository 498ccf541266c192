"""`modelbuild show`: an artifact, what it says of itself, and how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec

from modelbuild import artifact, explain, manifest
from modelbuild.commands.options import echo_json, json_option, opens_project, say, target_argument
from modelbuild.errors import ProblemError, problem
from modelbuild.project import Project
from modelbuild.record import Record
from modelbuild.report import amounts, figures
from modelbuild.report.figures import Measured
from modelbuild.report.sections import Section, sections


@click.command("show")
@target_argument
@json_option
@opens_project
def command(project: Project, pattern: str, as_json: bool) -> None:
    """Show TARGET's artifact as last built: its model, settings, metrics, files, and every fact that went into it."""
    records = [(name, record_of(project, name)) for name in project.select((pattern,))]
    shown = [(name, record, artifact.read(project.store.out(record.key))) for name, record in records]
    if as_json:
        echo_json(
            [
                {
                    "target": n,
                    "key": r.key,
                    "record": r,
                    "descriptor": made.descriptor,
                    "measured": measured(project, r),
                    "before": _before(project, n, r),
                }
                for n, r, made in shown
            ]
        )
        return
    for name, record, made in shown:
        node = project.graph.nodes[name]
        say(f"{name} ({record.manifest.kind})")
        rows = [
            ("artifact", str(project.store.names.path(node.recipe, node.short))),
            ("key", record.key),
            ("content", record.digest),
            ("size", f"{amounts.size(record.size)} in {len(record.files)} files"),
            ("built", f"{amounts.ago(record.built_at)} in {amounts.seconds(record.wall_s)}"),
            ("cost", f"{record.cpu_s:.2f} CPU-s, peak memory {amounts.size(record.peak_rss_bytes)}"),
        ]
        _section("", rows)
        now, before = measured(project, record), _before(project, name, record)
        changes = {n: figures.change(before.figures.get(n), v) for n, v in now.figures.items()} if before else {}
        _section("model", _model(made.descriptor, changes))
        told = record.metrics.items()
        _section("metrics", [(n, _changed(f"{f.value:.6g} {f.unit}".rstrip(), changes.get(n))) for n, f in told])
        for section in sections(now, before):
            _table(section)
        _section("made from", list(manifest.facts(record.manifest)))
        _section("files", [(f.path, f"{amounts.size(f.size)}") for f in record.files])
        _section("said", [(line, "") for line in record.log])


def record_of(project: Project, name: str) -> Record:
    """The record of a target's artifact as last built; a `ProblemError` when there is none."""
    node = project.graph.nodes[name]
    key = project.store.names.key(node.recipe, node.short)
    record = project.store.record(key) if key else None
    if record is None:
        raise problem(f"`{name}` has no artifact", hint=f"`modelbuild build {name}` makes it")
    damage = project.store.damage(record)
    if damage:
        raise ProblemError(
            *problem(
                f"the artifact of `{name}` is damaged",
                damage="; ".join(map(str, damage)),
                hint=f"`modelbuild build {name}` makes it again",
            ).problems
        )
    return record


def measured(project: Project, record: Record) -> Measured:
    """What was measured of an artifact in the store."""
    return figures.of(record, project.store.out(record.key))


def _before(project: Project, name: str, record: Record) -> Measured | None:
    """What was measured of what the target was before, where the store still has that whole."""
    earlier = explain.made_before(project.store, project.graph.nodes[name], record.key)
    return None if earlier is None or project.store.damage(earlier) else measured(project, earlier)


def _model(d: artifact.Descriptor, changes: Mapping[str, str]) -> list[tuple[str, str]]:
    rows = [("format", d.format), ("task", d.task or ""), ("precision", d.precision or "")]
    for name, component in d.components.items():
        rows.append((name, component.file))
        for label, tensors in (("input", component.inputs), ("output", component.outputs)):
            rows += [(f"  {label}", f"{t.name} {t.dtype} {list(t.shape)}") for t in tensors]
    rows += [(f"setting {n}", text) for n, v in sorted(d.settings.items()) for n, text in _leaves(n, v)]
    rows += [(f"figure {n}", _changed(f"{v:.6g}", changes.get(n))) for n, v in sorted(d.metrics.items())]
    return [(label, value) for label, value in rows if value]


def _changed(value: str, change: str | None) -> str:
    """`0.9986 (+0.0002 since the build before)`."""
    return f"{value} ({change} since the build before)" if change else value


def _table(section: Section) -> None:
    say(f"  {section.title}{f' {section.note}' if section.note else ''}")
    for line in amounts.table([section.head, *section.rows]):
        say(f"    {line}")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A setting as rows: maps and lists that hold maps are taken apart, `profiles.1.input_ids`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(v, dict) for v in inner):
        yield name, msgspec.json.encode(value).decode()
        return
    for key, below in value.items() if isinstance(value, dict) else enumerate(value, start=1):
        yield from _leaves(f"{name}.{key}", below)


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    if title:
        say(f"  {title}")
    indent = "    " if title else "  "
    for line in amounts.table([*rows]):
        say(indent + line)
