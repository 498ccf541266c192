"""`modelbuild gc`: remove artifacts that no recipe names any more."""

from __future__ import annotations

import click

from modelbuild import sweep
from modelbuild.commands.options import echo_json, json_option, opens_project
from modelbuild.decide import Decider
from modelbuild.project import Project
from modelbuild.report.amounts import size


@click.command("gc")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
@click.option("--keep-days", type=click.FloatRange(min=0), default=0.0, help="Keep artifacts built this recently.")
@json_option
@opens_project
def command(project: Project, dry_run: bool, keep_days: float, as_json: bool) -> None:
    """Remove artifacts that no target is or would be restored from, and what builds that died left behind.

    Waits for running builds. What going back to an earlier recipe would restore is removed too, unless it was built
    within `--keep-days`.
    """
    store = project.store
    if not store.root.is_dir():
        click.echo("there is no store yet", err=True)
        return
    with store.idle(lambda: click.echo("waiting for running builds to end", err=True)):
        decisions = Decider(project.graph, store).survey(project.graph.nodes)
        strays = [
            (recipe, target) for recipe, target in store.names.all() if f"{recipe}:{target}" not in project.graph.nodes
        ]
        linked = {store.names.key(n.recipe, n.short) for n in project.graph.nodes.values()}
        keep = {key for key in linked if key} | {d.key for d in decisions if d.key}
        keys = sweep.unneeded(store, keep, keep_days)
        paths = [*(store.root / key for key in keys), *sweep.leftovers(store)]
        swept = sweep.sweep(store, paths, dry_run=dry_run)
        if not dry_run:
            for recipe, target in strays:
                store.names.unlink(recipe, target)
    if as_json:
        echo_json({"removed": swept, "links": strays, "dry_run": dry_run})
        return
    for item in swept:
        click.echo(f"{size(item.size):>9}  {item.path}")
    for recipe, target in strays:
        click.echo(f"{'link':>9}  {recipe}/{target}")
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {size(sum(s.size for s in swept))}: {len(keys)} artifacts, {len(paths) - len(keys)} leftovers")
