"""`modelbuild why`: why a target is stale, or why it was last built."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, say, target_argument
from modelbuild.decide import Decider, Decision
from modelbuild.names import Reasons
from modelbuild.project import Project
from modelbuild.report.amounts import ago

DONE = {"build": "built", "restore": "restored"}
STATE = {
    "fresh": "is up to date",
    "restore": "will be restored: what it should be was made before",
    "build": "is stale",
    "maybe": "may be stale",
    "blocked": "cannot be built",
}


@click.command("why")
@target_argument
@json_option
@opens_project
def command(project: Project, pattern: str, as_json: bool) -> None:
    """Say why TARGET is stale, what led to it further up, and why it was last built."""
    found: list[tuple[Decision, list[Decision], Reasons | None]] = []
    for name in project.select((pattern,)):
        node = project.graph.nodes[name]
        decisions = Decider(project.graph, project.store).survey(project.graph.closure([name]))
        history = project.store.names.reasons(node.recipe, node.short)
        found.append(
            (decisions[-1], [d for d in decisions[:-1] if d.action != "fresh"], history[-1] if history else None)
        )
    if as_json:
        echo_json(
            [
                {
                    "target": d.target,
                    "state": d.action,
                    "reasons": d.reasons,
                    "problems": d.problems,
                    "above": [{"target": u.target, "state": u.action, "reasons": u.reasons} for u in above],
                    "last": last,
                }
                for d, above, last in found
            ]
        )
        return
    for d, above, last in found:
        say(f"{d.target} {STATE[d.action]}")
        for reason in (*d.reasons, *(p.title for p in d.problems)):
            say(f"  {reason}")
        for upstream in above:
            say(f"  above it, {upstream.target} {STATE[upstream.action]}")
            for reason in (*upstream.reasons, *(p.title for p in upstream.problems)):
                say(f"    {reason}")
        if last is not None:
            say(f"  last {DONE.get(last.action, last.action)} {ago(last.at)}, because")
            for reason in last.reasons:
                say(f"    {reason}")
