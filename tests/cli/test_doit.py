"""Plain doit works on the same targets through `dodo.py`, and remembers nothing."""

from __future__ import annotations

import shutil

import pytest

from tests.sandbox import REPOSITORY, Sandbox


@pytest.fixture
def project(sandbox: Sandbox) -> Sandbox:
    shutil.copy(REPOSITORY / "dodo.py", sandbox.root)
    sandbox.data("a.txt", "hello")
    sandbox.recipe(
        """
        a: {kind: text, path: a.txt}
        up: {kind: upper, from: a, matrix: {salt: [x, y]}}
        all: {kind: join, from: [up], sep: "-"}
        """
    )
    return sandbox


def test_doit_list_shows_every_target_with_its_kind_and_place(project: Sandbox) -> None:
    ran = project.shell("doit list --all")
    assert ran.code == 0, ran
    assert [line.split()[:2] for line in ran.out.splitlines() if line.startswith("r:")] == [
        ["r:a", "text"],
        ["r:all", "join"],
        ["r:up[salt~x]", "upper"],
        ["r:up[salt~y]", "upper"],
    ]


def test_doit_builds_a_target_and_what_it_needs_and_nothing_twice(project: Sandbox) -> None:
    first = project.shell("doit r:all")
    assert first.code == 0, first
    assert project.value("all") == "HELLO-HELLO"
    assert project.built().built == []
    again = project.shell("doit r:all")
    assert "-- r:all" in again.out
    assert "build" not in again.err


def test_doit_runs_in_parallel_and_stops_early_like_modelbuild(project: Sandbox) -> None:
    project.built()
    project.data("a.txt", "HELLO")
    ran = project.shell("doit -n 2 -P thread r")
    assert ran.code == 0, ran
    assert "build r:a " in ran.err
    assert "same output" in ran.err
    assert "build r:all" not in ran.err


def test_doit_info_says_whether_a_target_is_up_to_date(project: Sandbox) -> None:
    assert "run" in project.shell("doit info r:up[salt~x]").out
    project.built()
    assert "up-to-date" in project.shell("doit info r:up[salt~x]").out


def test_doit_fails_when_a_build_fails(project: Sandbox) -> None:
    project.recipe("a: {kind: text, path: a.txt}\nbad: {kind: fail, from: a, when: hell}")
    ran = project.shell("doit r:bad")
    assert ran.code != 0
    assert "the input holds `hell`" in ran.err
    assert "Traceback" not in ran.err


def test_doit_tells_of_a_broken_recipe_without_a_traceback(project: Sandbox) -> None:
    project.recipe("a: {kind: text, pth: a.txt}")
    ran = project.shell("doit list")
    assert ran.code != 0
    assert "unknown option `pth` of kind `text`" in ran.err
    assert "Traceback" not in ran.err


def test_doit_leaves_no_database(project: Sandbox) -> None:
    project.shell("doit r:all")
    left = {p.name for p in project.root.iterdir()} - {"__pycache__"}
    assert left == {"artifacts", "dodo.py", "recipes"}
