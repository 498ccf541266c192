"""Options that several verbs share, and the project they open."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from modelbuild import project
from modelbuild.errors import problem

F = TypeVar("F", bound=Callable[..., Any])


def complete_target(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of targets: `recipe:target` and bare names."""
    try:
        opened = project.load(project.locate(Path(context.params.get("project_folder") or ".")), {})
    except Exception:
        return []
    names = [*opened.graph.nodes, *(n.short for n in opened.graph.nodes.values()), *opened.graph.defaults]
    return sorted({n for n in names if n.startswith(incomplete)})


def opens_project(command: F) -> F:
    """Give a verb `--project` and `--set`, and the project they mean as its first argument."""

    @click.option(
        "-C", "--project", "project_folder", type=click.Path(path_type=Path), default=".", help="The project's folder."
    )
    @click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Override a recipe's `vars`.")
    @functools.wraps(command)
    def wrapped(project_folder: Path, settings: tuple[str, ...], **rest: Any) -> Any:
        opened = project.load(project.locate(project_folder), _settings(settings))
        try:
            return command(opened, **rest)
        finally:
            opened.store.close()

    return wrapped  # type: ignore[return-value]


def _settings(given: tuple[str, ...]) -> dict[str, str]:
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise problem(f"`--set {text}` is not NAME=VALUE")
        settings[name] = value
    return settings


targets_argument = click.argument("patterns", nargs=-1, metavar="[TARGET]...", shell_complete=complete_target)
target_argument = click.argument("pattern", metavar="TARGET", shell_complete=complete_target)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def say(line: str) -> None:
    """A line of an answer on stdout, whatever a file or a build put into it shown escaped."""
    from modelbuild.report.errors import safe  # costs a no-op command a hundredth of its time

    click.echo(safe(line))


def echo_json(value: Any) -> None:
    """Data as JSON on stdout, indented."""
    from modelbuild.report import jsonl

    click.echo(msgspec.json.format(jsonl.text(value), indent=2))
