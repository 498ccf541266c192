"""The reference pages are made from the code, and the kinds' versions move with their source."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import click
import pytest

from modelbuild import digest, kind
from modelbuild.cli import COMMANDS, cli
from modelbuild.report import kindpage
from tests import golden

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
PLUGIN_FREE = sorted(kind.BUILTIN)


@pytest.mark.parametrize("name", PLUGIN_FREE)
def test_a_kinds_page_is_its_module(name: str) -> None:
    golden.check(REFERENCE / "kinds" / f"{name}.md", kindpage.page(name, kind.load(name)))


@pytest.mark.parametrize("name", PLUGIN_FREE)
def test_every_option_is_described(name: str) -> None:
    fields = kind.fields(kind.load(name).Spec)
    assert [f.name for f in fields if not kindpage.description(f.type)] == []


def test_the_list_of_kinds_is_the_table() -> None:
    lines = [f"- [`{name}`]({name}.md): {kindpage.summary(kind.load(name))}" for name in kind.BUILTIN]
    golden.check(REFERENCE / "kinds" / "README.md", "# Kinds\n\n" + "\n".join(lines) + "\n")


def test_the_command_line_page_is_the_help_of_every_verb() -> None:
    parts = ["# Command line\n\n```text\n" + _help(cli, "modelbuild") + "\n```\n"]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts.append(f"## {name}\n\n```text\n{_help(command, f'modelbuild {name}')}\n```\n")
    parts.append(
        "## Exit codes\n\n"
        "0: done. 1: a build failed, a requirement did not hold, or `verify` found damage. 2: a recipe or the call is\n"
        "wrong, or a target cannot be tried here. 3: a bug of ours, with a report to paste. 130: interrupted.\n\n"
        "Data goes to stdout, talk to stderr. `NO_COLOR` and `FORCE_COLOR` are respected.\n"
    )
    golden.check(REFERENCE / "cli.md", "\n".join(parts))


def test_a_kinds_version_is_raised_when_its_source_changes_its_output() -> None:
    """Whoever changes a kind's source decides here whether its output changes, and then raises its VERSION."""
    found = {name: {"version": kind.load(name).VERSION, "source": _source_digest(name)} for name in PLUGIN_FREE}
    golden.check(ROOT / "tests" / "kinds" / "versions.json", json.dumps(found, indent=2) + "\n")


def _help(command: click.Command, name: str) -> str:
    names = cli.context_settings["help_option_names"]  # a command keeps those of its first context
    context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100, help_option_names=names)
    return command.get_help(context)


def _source_digest(name: str) -> str:
    """The digest of a kind's module and of every `lib` module that it reaches."""
    pending, seen = [kind.BUILTIN[name]], set[str]()
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        pending += [m for m in _imports(_path(module)) if m.startswith("modelbuild.lib.")]
    return digest.of_tree((m, digest.of_file(_path(m))) for m in seen)


def _path(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if importlib.util.find_spec(name.partition(".")[0]) and _is_module(name)}


def _is_module(name: str) -> bool:
    if not name.startswith("modelbuild."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
