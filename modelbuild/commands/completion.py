"""`modelbuild completion`: a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL, which completes commands, options and targets.

    bash: `modelbuild completion bash > ~/.local/share/bash-completion/completions/modelbuild`
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "modelbuild", "_MODELBUILD_COMPLETE").source())
