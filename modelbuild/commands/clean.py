"""`modelbuild clean`: remove targets' artifacts."""

from __future__ import annotations

import click

from modelbuild import pins, sweep
from modelbuild.commands.options import echo_json, json_option, opens_project, targets_argument
from modelbuild.project import Project
from modelbuild.report.amounts import size


@click.command("clean")
@targets_argument
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove the artifacts of the TARGETs (default: all), so that the next build makes them anew.

    An artifact that another target links to, or that is pinned, stays. Waits for running builds.
    """
    store = project.store
    names = project.select(patterns) if patterns else tuple(project.graph.nodes)
    nodes = [project.graph.nodes[n] for n in names]
    if not store.root.is_dir():
        click.echo("there is no store yet", err=True)
        return
    with store.idle(lambda: click.echo("waiting for running builds to end", err=True)):
        cleaned = {(n.recipe, n.short) for n in nodes}
        others = {store.names.key(*name) for name in store.names.all() if name not in cleaned}
        keys = {store.names.key(*name) for name in cleaned} - others - {p.key for p in pins.every(store)} - {None}
        paths = [store.root / key for key in sorted(k for k in keys if k) if (store.root / key).is_dir()]
        swept = sweep.sweep(store, paths, dry_run=dry_run)
        if not dry_run:
            for recipe, target in cleaned:
                store.names.unlink(recipe, target)
    if as_json:
        echo_json({"removed": swept, "dry_run": dry_run})
        return
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {len(swept)} artifacts, {size(sum(s.size for s in swept))}")
