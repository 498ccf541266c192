"""`modelbuild list`: the targets."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, targets_argument
from modelbuild.project import Project
from modelbuild.report.amounts import table


@click.command("list")
@targets_argument
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], as_json: bool) -> None:
    """List the TARGETs (default: all) and all they need: kinds, and what each is made from. Looks at recipes only."""
    names = project.graph.closure(project.select(patterns) if patterns else project.graph.nodes)
    nodes = [project.graph.nodes[n] for n in names]
    if as_json:
        echo_json(
            [
                {
                    "target": n.name,
                    "kind": n.kind,
                    "inputs": n.inputs,
                    "sources": {s.field: s.text for s in n.sources},
                    "where": str(n.where),
                }
                for n in nodes
            ]
        )
        return
    for line in table([(n.name, n.kind, ", ".join(i.partition(":")[2] for i in n.needs())) for n in nodes]):
        click.echo(line)
