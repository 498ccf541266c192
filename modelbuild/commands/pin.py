"""`modelbuild pin`: keep an artifact through every `gc`."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click

from modelbuild import pins
from modelbuild.commands.options import echo_json, json_option, opens_project, say, targets_argument
from modelbuild.commands.show import record_of
from modelbuild.errors import problem
from modelbuild.names import KEY
from modelbuild.pins import Pin
from modelbuild.project import Project
from modelbuild.report import amounts


@click.command("pin")
@targets_argument
@click.option("--remove", is_flag=True, help="Take pins off again, by target or key.")
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Keep the artifacts that TARGETs (or keys) have now, whatever recipes will say. Without any, list the pins.

    `gc` and `clean` leave a pinned artifact in the store; going back to the recipe that made it restores it.
    """
    if remove and not patterns:
        raise problem("`--remove` needs a target or a key", hint="`modelbuild pin` lists the pins")
    store = project.store
    if patterns:
        store.prepare()
        with store.building():  # not while `gc` removes
            for key, target in _pinned(project, patterns) if remove else _to_pin(project, patterns):
                if remove:
                    pins.remove(store, key)
                else:
                    pins.add(store, key, target)
    kept = pins.every(store)
    if as_json:
        echo_json(kept)
        return
    for line in amounts.table([(pin.key, pin.target, amounts.ago(pin.at), _state(project, pin)) for pin in kept]):
        say(line)
    if not kept:
        click.echo("nothing is pinned", err=True)


def _to_pin(project: Project, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for pattern in patterns:
        if KEY.fullmatch(pattern):
            if project.store.record(pattern) is None:
                raise problem(f"the store has no artifact with key `{pattern}`")
            found.append((pattern, ""))
            continue
        found += [(record_of(project, name).key, name) for name in project.select((pattern,))]
    return found


def _pinned(project: Project, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """The pins that patterns mean: those of targets that are in no recipe any more can be taken off too."""
    found: list[tuple[str, str]] = []
    for pattern in patterns:
        these = [p for p in pins.every(project.store) if p.key == pattern or _means(pattern, p.target)]
        if not these:
            raise problem(f"no pin matches `{pattern}`", hint="`modelbuild pin` lists the pins")
        found += [(p.key, p.target) for p in these]
    return found


def _means(pattern: str, target: str) -> bool:
    return pattern in (target, target.partition(":")[2]) or fnmatchcase(target, pattern)


def _state(project: Project, pin: Pin) -> str:
    record = project.store.record(pin.key)
    return f"{amounts.size(record.size)} in {project.store.out(pin.key)}" if record else "its artifact is gone"
