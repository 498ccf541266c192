"""`modelbuild gc`: remove artifacts that no recipe names any more."""

from __future__ import annotations

import math

import click

from modelbuild import pins, sweep
from modelbuild.commands.options import echo_json, json_option, opens_project, say
from modelbuild.decide import Decider
from modelbuild.project import Project
from modelbuild.report.amounts import parse_size, size


def _bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of bytes as people write it: `20GB`, `512 MiB`, `1000`."""
    try:
        return None if value is None else parse_size(value)
    except ValueError:
        raise click.BadParameter(f"`{value}` is no size: write it `20GB`", context, parameter) from None


def _days(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A number of days: `nan` is none, though no comparison says so."""
    if math.isnan(value):
        raise click.BadParameter("`nan` is no number of days", context, parameter)
    return value


@click.command("gc")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--keep-days", type=click.FloatRange(min=0), callback=_days, default=0.0, help="Keep artifacts built this recently."
)
@click.option("--max-size", metavar="SIZE", callback=_bytes, help="Remove the oldest until the store fits: `20GB`.")
@json_option
@opens_project
def command(project: Project, dry_run: bool, keep_days: float, max_size: int | None, as_json: bool) -> None:
    """Remove artifacts that no target is or would be restored from, and what builds that died left behind.

    Waits for running builds. What going back to an earlier recipe would restore is removed too, unless it was built
    within `--keep-days` or is pinned (`modelbuild pin`). With `--max-size` it stays as long as the whole store fits in
    that; the oldest goes first.
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
        keep = {key for key in linked if key} | {d.key for d in decisions if d.key} | {p.key for p in pins.every(store)}
        keys = sweep.unneeded(store, keep, keep_days)
        taken = 0
        if max_size is not None:
            keys, taken = sweep.beyond(store, keys, max_size)
        paths = [*(store.root / key for key in keys), *sweep.leftovers(store)]
        swept = sweep.sweep(store, paths, dry_run=dry_run)
        if not dry_run:
            for recipe, target in strays:
                store.names.unlink(recipe, target)
    if as_json:
        echo_json({"removed": swept, "links": strays, "dry_run": dry_run})
        return
    if max_size is not None and taken > max_size:
        held = "recipes, pins and `--keep-days` hold the rest"
        click.echo(f"the store {'would take' if dry_run else 'takes'} {size(taken)} even so: {held}", err=True)
    for item in swept:
        say(f"{size(item.size):>9}  {item.path}")
    for recipe, target in strays:
        say(f"{'link':>9}  {recipe}/{target}")
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {size(sum(s.size for s in swept))}: {len(keys)} artifacts, {len(paths) - len(keys)} leftovers")
