"""`modelbuild verify`: read every artifact back."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, say
from modelbuild.project import Project


@click.command("verify")
@json_option
@opens_project
def command(project: Project, as_json: bool) -> int:
    """Read every artifact in the store and compare it with its record, whatever its stat says.

    Exits 1 when something is damaged. The next build makes damaged artifacts anew where a target needs them.
    """
    store = project.store
    damaged: dict[str, list[str]] = {}
    count = 0
    by_key = {store.names.key(*name): ":".join(name) for name in store.names.all()}
    for key in store.all_keys():
        count += 1
        record = store.record(key)
        wrong = [str(d) for d in store.damage(record, read=True)] if record else ["its record is missing or damaged"]
        if wrong:
            damaged[by_key.get(key) or key] = wrong
    dangling = [name for key, name in by_key.items() if key and not store.out(key).is_dir()]
    damaged.update((name, ["its artifact is missing"]) for name in dangling)
    if as_json:
        echo_json({"artifacts": count, "damaged": damaged})
    else:
        for name, wrong in damaged.items():
            say(name)
            for what in wrong:
                say(f"  {what}")
        say(f"{count} artifacts, {len(damaged)} damaged")
    return 1 if damaged else 0
