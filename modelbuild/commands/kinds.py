"""`modelbuild kinds`: the target kinds."""

from __future__ import annotations

import click

from modelbuild import kind
from modelbuild.commands.options import echo_json, json_option
from modelbuild.report import kindpage
from modelbuild.report.amounts import table


@click.command("kinds")
@click.argument("name", required=False, metavar="[KIND]")
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the target kinds, plugins included, or print the reference page of KIND."""
    if name is not None:
        module = kind.load(name)
        if as_json:
            echo_json(_facts(name))
        else:
            click.echo(kindpage.page(name, module), nl=False)
        return
    if as_json:
        echo_json([_facts(n) for n in kind.names()])
        return
    for line in table([(n, kindpage.summary(kind.load(n))) for n in kind.names()]):
        click.echo(line)


def _facts(name: str) -> dict[str, object]:
    module = kind.load(name)
    return {
        "kind": name,
        "summary": kindpage.summary(module),
        "module": module.__name__,
        "version": module.VERSION,
        "tools": dict(module.TOOLS),
        "options": [
            {
                "name": f.name,
                "role": f.role,
                "value": kindpage.value(f),
                "required": f.required,
                "description": kindpage.description(f.type),
            }
            for f in kind.fields(module.Spec)
        ],
    }
