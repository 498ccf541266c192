"""What `gc` keeps: what recipes name, pins, the young, and what fits in a budget; and beside running builders."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelbuild.report.amounts import parse_size
from tests.faults.test_kill import RECIPE, content, finished, held
from tests.sandbox import Sandbox

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("template"))
    sandbox.recipe(f"a: {{kind: text, path: a.txt}}\nb: {{kind: slow, from: a, bytes: {MEGABYTE}, seconds: 0}}")
    for number in range(4):
        sandbox.data("a.txt", f"{number}")
        sandbox.built()
    return sandbox


@pytest.fixture
def aged(template: Sandbox, tmp_path: Path) -> Sandbox:
    """A project whose source was edited three times: four artifacts of `b`, a megabyte each."""
    return template.copy(tmp_path)


def go_back_to(sandbox: Sandbox, number: int) -> list[str]:
    """What is restored, not built, where the source is as it was."""
    sandbox.data("a.txt", f"{number}")
    return sandbox.built("b").restored


def size(sandbox: Sandbox) -> int:
    kept = sandbox.keys()
    return sum(p.stat().st_size for key in kept for p in (sandbox.store / key).rglob("*") if p.is_file())


def test_a_pinned_artifact_stays_and_is_restored(aged: Sandbox) -> None:
    go_back_to(aged, 1)
    key = aged.key("b")
    assert aged.run("pin", "b").code == 0
    go_back_to(aged, 3)

    aged.run("gc")

    assert aged.keys() == {key, aged.key("a"), aged.key("b")}
    assert go_back_to(aged, 1) == ["b"]


def test_a_pin_that_is_taken_off_keeps_nothing(aged: Sandbox) -> None:
    go_back_to(aged, 1)
    aged.run("pin", "b")
    go_back_to(aged, 3)

    assert aged.run("pin", "--remove", "b").code == 0

    aged.run("gc")
    assert aged.keys() == {aged.key("a"), aged.key("b")}


def test_a_pin_outlives_its_target_and_is_listed_with_its_key(aged: Sandbox) -> None:
    key = aged.key("b")
    aged.run("pin", "b")
    aged.recipe("a: {kind: text, path: a.txt}")
    aged.built()

    aged.run("gc")

    (pin,) = aged.run("pin", "--json").json
    assert (pin["key"], pin["target"]) == (key, "r:b")
    assert {key} <= aged.keys()
    assert aged.run("pin", "--remove", key).code == 0


def test_a_pin_by_key_and_damaged_pins_keep_too(aged: Sandbox) -> None:
    keys = aged.keys()
    aged.run("pin", *keys)
    for path in (aged.store / "pins").iterdir():
        path.write_bytes(b"\xff" * 9)

    aged.run("gc")

    assert aged.keys() == keys


def test_clean_leaves_a_pinned_artifact_in_the_store(aged: Sandbox) -> None:
    key = aged.key("b")
    aged.run("pin", "b")
    aged.run("clean", "b")

    assert {key} <= aged.keys()
    assert aged.built().restored == ["b"]


@pytest.mark.parametrize("arguments", [("nothing",), ("--remove", "b"), ("--remove",), ("0" * 32,)])
def test_what_cannot_be_pinned_is_a_problem(aged: Sandbox, arguments: tuple[str, ...]) -> None:
    ran = aged.run("pin", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("error: ")


def test_within_its_budget_nothing_goes(aged: Sandbox) -> None:
    keys = aged.keys()
    assert aged.run("gc", "--max-size", "1GB").code == 0
    assert aged.keys() == keys


def test_over_its_budget_the_oldest_go_until_it_fits(aged: Sandbox) -> None:
    aged.run("gc", "--max-size", "2.5MB")

    assert size(aged) <= 2.5 * MEGABYTE
    assert "b" in go_back_to(aged, 2), "the youngest but one stays"
    assert "b" not in go_back_to(aged, 1), "the older went"


def test_a_budget_never_takes_what_recipes_name_and_says_so(aged: Sandbox) -> None:
    ran = aged.run("gc", "--max-size", "10")

    assert "the store takes 1.0 MB even so" in ran.err
    assert aged.keys() == {aged.key("a"), aged.key("b")}
    assert aged.built().built == []


def test_a_dry_run_with_a_budget_tells_what_a_run_removes(aged: Sandbox) -> None:
    foreseen = aged.run("gc", "-n", "--max-size", "2.5MB", "--json").json["removed"]
    assert aged.run("gc", "--max-size", "2.5MB", "--json").json["removed"] == foreseen != []


def test_files_that_artifacts_share_count_once(sandbox: Sandbox) -> None:
    """`keep` is a link to `big`'s megabyte: both in 1.5 MB are within the budget."""
    from tests.sandbox import kind_source

    link = "ctx.link(ctx.input().path / 'data.bin', ctx.out / 'data.bin')\nfinish(ctx, spec.note)"
    sandbox.kinds(links=kind_source(link))
    sandbox.recipe(f"big: {{kind: slow, bytes: {MEGABYTE}, seconds: 0}}\nkeep: {{kind: links, from: big, note: x}}")
    sandbox.built()
    sandbox.edit("note: x", "note: y")
    sandbox.built()

    assert sandbox.run("gc", "-n", "--max-size", "1.5MB", "--json").json["removed"] == []


@pytest.mark.parametrize(
    ("text", "count"), [("1000", 1000), ("20GB", 20 * 10**9), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("1k", 1000)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "20 G B", "1iB", "9" * 99, "nan", "٣"])
def test_what_is_no_size_is_a_usage_problem(aged: Sandbox, text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_gc_with_a_budget_beside_two_builders_takes_nothing_they_need(sandbox: Sandbox) -> None:
    sandbox.recipe(RECIPE)
    for number in range(2):
        sandbox.data("a.txt", f"{number}")
        builds = [sandbox.start("build", "--json", "-j", "2") for _ in range(2)]
        while any(build.poll() is None for build in builds):
            assert sandbox.run("gc", "--max-size", "0").code == 0
            time.sleep(0.02)
        rans = finished(builds)

        assert [ran.code for ran in rans] == [0, 0], rans
        assert held(sandbox) == content(f"{number}")
        assert sandbox.built().built == []
