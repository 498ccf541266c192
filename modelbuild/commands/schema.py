"""`modelbuild schema`: the JSON Schema of recipes."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json
from modelbuild.language import schema


@click.command("schema")
@click.option("--json", "as_json", is_flag=True, help="The schema is JSON anyway.")
def command(as_json: bool) -> None:
    """Print the JSON Schema of recipes, plugins' kinds included.

    Save it beside the recipes and point editors to it with a first line
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    echo_json(schema.schema())
