"""The graph is kept between runs, and is never an old one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sandbox import Sandbox, kind_source

IMPORTED = "import sys, modelbuild.cli; modelbuild.cli.main({arguments!r}); print('yaml' in sys.modules)"


@pytest.fixture
def project(sandbox: Sandbox) -> Sandbox:
    sandbox.data("a.txt", "hello")
    sandbox.recipe("extends: _base.yaml\nvars: {salt: x}\ntargets:\n  up: {kind: upper, from: a, salt: '${salt}'}\n")
    sandbox.data("_base.yaml", "targets:\n  a: {kind: text, path: a.txt}\n")
    sandbox.built()
    reads_recipes(sandbox)
    return sandbox


def reads_recipes(project: Sandbox, *arguments: str) -> bool:
    """Whether a run reads YAML. Always by the same `sys.path`: plugins found elsewhere are another matter."""
    code = IMPORTED.format(arguments=list(arguments or ("list",)))
    ran = project.shell(f'python -c "{code}"')
    assert ran.code == 0, ran
    return ran.out.splitlines()[-1] == "True"


def test_an_unchanged_project_is_not_read_again(project: Sandbox) -> None:
    assert not reads_recipes(project)
    assert not reads_recipes(project, "build")
    assert not reads_recipes(project, "plan")


def test_an_edited_recipe_is_read_again_once(project: Sandbox) -> None:
    project.edit("salt: x", "salt: z")
    assert reads_recipes(project)
    assert not reads_recipes(project)
    assert project.built().built == ["up"]


def test_an_edited_file_that_a_recipe_extends_counts(project: Sandbox) -> None:
    project.data("b.txt", "other")
    project.edit("a.txt", "b.txt", name="_base")
    assert project.built().built == ["a", "up"]
    assert project.value("up") == "OTHER"


def test_a_new_or_removed_recipe_counts(project: Sandbox) -> None:
    project.recipe("x: {kind: text, path: a.txt}", name="second")
    assert "second:x" in project.run("list").out
    (project.root / "recipes" / "second.yaml").unlink()
    assert "second:x" not in project.run("list").out


def test_settings_are_not_mixed_up(project: Sandbox) -> None:
    assert project.built("--set", "salt=q").built == ["up"]
    assert project.built().restored == ["up"]
    assert project.built("--set", "salt=q").restored == ["up"]


def test_a_changed_kind_counts(project: Sandbox) -> None:
    project.kinds(text=kind_source('finish(ctx, "new")', version=2))
    assert project.built().built == ["a", "up"]
    assert project.value("up") == "NEW"


def test_a_kind_that_goes_away_counts(project: Sandbox) -> None:
    shutil.rmtree(project.plugins)
    ran = project.run("list")
    assert ran.code == 2
    assert "unknown kind" in ran.err


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_graph_is_made_anew(project: Sandbox, damage: bytes | None) -> None:
    path = project.store / "graph.msgpack"
    data = path.read_bytes()
    path.write_bytes(data[:-3] + b"\0\0\0" if damage is None else damage)
    assert reads_recipes(project)
    assert not reads_recipes(project)


def test_a_moved_project_is_read_again_and_not_built(project: Sandbox, tmp_path: Path) -> None:
    moved = project.copy(tmp_path / "elsewhere")
    shutil.rmtree(project.root)
    assert reads_recipes(moved)
    assert moved.built().built == []
