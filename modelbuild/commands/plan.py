"""`modelbuild plan`: what a build would do, and why."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, say, targets_argument
from modelbuild.decide import Decider
from modelbuild.project import Project

WORDS = {"restore": "restore", "build": "build", "maybe": "maybe", "blocked": "cannot build"}


@click.command("plan")
@targets_argument
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], as_json: bool) -> None:
    """Say what `build TARGET...` would do, in order, and why. Builds nothing.

    `maybe` means that an input will be rebuilt, and that this target follows only if the input comes out different.
    """
    names = project.graph.closure(project.select(patterns))
    decisions = Decider(project.graph, project.store).survey(names)
    todo = [d for d in decisions if d.action != "fresh"]
    if as_json:
        echo_json(
            [{"target": d.target, "action": d.action, "reasons": d.reasons, "problems": d.problems} for d in decisions]
        )
        return
    for d in todo:
        say(f"{WORDS[d.action]:>12}  {d.target}")
        for reason in (*d.reasons, *(p.title for p in d.problems)):
            say(f"{'':14}{reason}")
    if not todo:
        say(f"nothing to do: {len(decisions)} targets are up to date")
