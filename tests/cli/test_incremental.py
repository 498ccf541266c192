"""What is rebuilt after which change, what is not, and what `plan` and `why` say of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modelbuild.digest import FINE_GRAIN_NS
from tests.sandbox import Sandbox, kind_source

CHAIN = """
    a:     {kind: text, path: a.txt}
    b:     {kind: text, path: b.txt}
    big:   {kind: upper, from: a}
    both:  {kind: join, from: [big, b], sep: "-"}
    last:  {kind: upper, from: both}
    other: {kind: upper, from: b}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Built once: every test takes a copy, which a project does not mind."""
    sandbox = Sandbox(tmp_path_factory.mktemp("template"))
    sandbox.recipe(CHAIN)
    sandbox.data("a.txt", "one")
    sandbox.data("b.txt", "two")
    sandbox.built()
    return sandbox


@pytest.fixture
def chain(template: Sandbox, tmp_path: Path) -> Sandbox:
    """Six built targets: a → big → both → last, b → both, b → other."""
    return template.copy(tmp_path)


@pytest.fixture
def settled(chain: Sandbox) -> Sandbox:
    """The same, with every digest known by its file's stat: what follows must be noticed by stat."""
    time.sleep(2 * FINE_GRAIN_NS / 1e9)
    assert nothing_runs(chain)
    return chain


def planned(sandbox: Sandbox, *targets: str) -> dict[str, str]:
    """What `plan` says of each target that is not up to date."""
    rows = sandbox.run("plan", "--json", *targets).json
    return {row["target"].removeprefix("r:"): row["action"] for row in rows if row["action"] != "fresh"}


def nothing_runs(sandbox: Sandbox) -> bool:
    """Whether `plan` foresees and `build` finds that all is up to date."""
    foreseen = planned(sandbox)
    ran = sandbox.built()
    return not foreseen and {e["event"] for e in ran.events} == {"fresh"}


def test_the_first_build_makes_inputs_before_what_is_made_of_them(sandbox: Sandbox) -> None:
    sandbox.recipe(CHAIN)
    sandbox.data("a.txt", "one")
    sandbox.data("b.txt", "two")

    ran = sandbox.built()

    assert sorted(ran.built) == ["a", "b", "big", "both", "last", "other"]
    assert ran.built.index("a") < ran.built.index("big") < ran.built.index("both") < ran.built.index("last")
    assert sandbox.value("both") == "ONE-two"
    assert sandbox.value("last") == "ONE-TWO"


def test_the_second_build_does_nothing(chain: Sandbox) -> None:
    assert nothing_runs(chain)


def test_a_build_in_parallel_gives_the_same(chain: Sandbox, tmp_path: Path) -> None:
    parallel = Sandbox(tmp_path / "parallel", chain.plugins)
    parallel.recipe(CHAIN)
    parallel.data("a.txt", "one")
    parallel.data("b.txt", "two")

    parallel.built("-j", "2")

    assert {t: parallel.key(t) for t in ("a", "both", "last")} == {t: chain.key(t) for t in ("a", "both", "last")}
    assert nothing_runs(parallel)


def test_only_the_named_target_and_its_inputs_are_built(sandbox: Sandbox) -> None:
    sandbox.recipe(CHAIN)
    sandbox.data("a.txt", "one")
    sandbox.data("b.txt", "two")

    ran = sandbox.built("big")

    assert ran.built == ["a", "big"]
    assert not sandbox.path("b").exists()


def test_an_edited_option_rebuilds_its_target_and_what_is_under_it(chain: Sandbox) -> None:
    chain.edit('sep: "-"', 'sep: "+"')

    assert planned(chain) == {"both": "build", "last": "maybe"}
    assert chain.built().built == ["both", "last"]
    assert chain.value("last") == "ONE+TWO"


def test_an_edited_source_rebuilds_what_is_made_of_it(chain: Sandbox) -> None:
    chain.data("a.txt", "neu")

    assert planned(chain) == {"a": "build", "big": "maybe", "both": "maybe", "last": "maybe"}
    assert chain.built().built == ["a", "big", "both", "last"]
    assert chain.value("last") == "NEU-TWO"


def test_an_edit_of_the_same_length_with_the_old_time_put_back_is_noticed(settled: Sandbox) -> None:
    path = settled.root / "recipes" / "a.txt"
    before = path.stat()
    path.write_text("eno")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert settled.built().built == ["a", "big", "both", "last"]


def test_another_file_renamed_over_a_source_is_noticed(settled: Sandbox) -> None:
    path = settled.root / "recipes" / "a.txt"
    before = path.stat()
    other = settled.data("new.txt", "eno")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)

    assert settled.built().built == ["a", "big", "both", "last"]


def test_a_source_replaced_by_a_link_to_other_content_is_noticed(settled: Sandbox) -> None:
    path = settled.root / "recipes" / "a.txt"
    path.unlink()
    path.symlink_to(settled.data("elsewhere.txt", "eno").name)

    assert settled.built().built == ["a", "big", "both", "last"]


def test_touching_a_source_rebuilds_nothing(settled: Sandbox) -> None:
    os.utime(settled.root / "recipes" / "a.txt")

    assert nothing_runs(settled)


def test_writing_a_source_again_with_the_same_content_rebuilds_nothing(chain: Sandbox) -> None:
    path = chain.root / "recipes" / "a.txt"
    path.unlink()
    chain.data("a.txt", "one")

    assert nothing_runs(chain)


def test_an_unrelated_file_rebuilds_nothing(chain: Sandbox) -> None:
    chain.data("notes.txt", "anything")

    assert nothing_runs(chain)


def test_moving_the_whole_project_rebuilds_nothing(chain: Sandbox) -> None:
    assert nothing_runs(chain)

    chain.root = chain.root.rename(chain.root.with_name("moved elsewhere"))

    assert nothing_runs(chain)
    assert chain.value("last") == "ONE-TWO"


def test_copying_the_whole_project_rebuilds_nothing(chain: Sandbox) -> None:
    copy = chain.root.with_name("copy")
    assert chain.shell(f"cp -r . {copy}").code == 0
    chain.root = copy

    assert nothing_runs(chain)


def test_renaming_a_source_rebuilds_nothing(chain: Sandbox) -> None:
    (chain.root / "recipes" / "a.txt").rename(chain.root / "recipes" / "first.txt")
    chain.edit("path: a.txt", "path: first.txt")

    assert nothing_runs(chain)


def test_a_renamed_target_is_linked_again_and_no_kind_runs(chain: Sandbox) -> None:
    chain.edit("big:   {", "large: {")
    chain.edit("from: [big, b]", "from: [large, b]")

    ran = chain.built()

    assert (ran.built, ran.restored) == ([], ["large"])
    assert chain.value("large") == "ONE"


def test_a_renamed_recipe_is_linked_again_and_no_kind_runs(chain: Sandbox) -> None:
    (chain.root / "recipes" / "r.yaml").rename(chain.root / "recipes" / "s.yaml")

    ran = chain.built()

    assert (ran.built, len(ran.restored)) == ([], 6)
    assert chain.value("last", recipe="s") == "ONE-TWO"


def test_reordered_keys_and_comments_rebuild_nothing(chain: Sandbox) -> None:
    chain.recipe(
        """
        # the same targets in another order and style
        last:  {from: both, kind: upper}
        other: {kind: upper, from: b}
        both:
          sep: "-"   # between them
          from:
            - big
            - b
          kind: join
        big:   {from: a, kind: upper}
        b:     {path: b.txt, kind: text}
        a:     {path: a.txt, kind: text}
        """
    )

    assert nothing_runs(chain)


def test_an_option_written_out_at_its_default_rebuilds_nothing(chain: Sandbox) -> None:
    chain.edit("{kind: upper, from: both}", '{kind: upper, from: both, salt: ""}')

    assert nothing_runs(chain)


def test_the_order_of_a_list_of_inputs_matters(chain: Sandbox) -> None:
    chain.edit("[big, b]", "[b, big]")

    assert chain.built().built == ["both", "last"]
    assert chain.value("both") == "two-ONE"


def test_a_rebuild_with_the_same_output_stops_there(chain: Sandbox) -> None:
    chain.edit("{kind: upper, from: a}", "{kind: upper, from: a, salt: x}")

    assert planned(chain) == {"big": "build", "both": "maybe", "last": "maybe"}
    ran = chain.built()

    assert ran.built == ["big"]
    assert [e["changed"] for e in ran.events if e["event"] == "built"] == [False]
    assert sorted(ran.fresh) == ["a", "b", "both", "last", "other"]


def test_going_back_restores_without_building(chain: Sandbox) -> None:
    chain.edit('sep: "-"', 'sep: "+"')
    chain.built()
    chain.edit('sep: "+"', 'sep: "-"')

    assert planned(chain) == {"both": "restore", "last": "restore"}
    ran = chain.built()

    assert (ran.built, ran.restored) == ([], ["both", "last"])
    assert chain.value("last") == "ONE-TWO"
    assert nothing_runs(chain)


def test_two_targets_that_are_the_same_are_built_once(chain: Sandbox) -> None:
    chain.edit("other: {kind: upper, from: b}", "other: {kind: upper, from: b}\n  twin:  {kind: upper, from: b}")

    ran = chain.built()

    assert (ran.built, ran.restored) == ([], ["twin"])
    assert chain.key("twin") == chain.key("other")


def test_an_added_target_alone_is_built(chain: Sandbox) -> None:
    chain.edit("other: {kind: upper, from: b}", "other: {kind: upper, from: b}\n  more: {kind: join, from: [a, b]}")

    assert chain.built().built == ["more"]


def test_another_version_of_a_tool_that_a_kind_names_makes_it_stale(sandbox: Sandbox) -> None:
    sandbox.kinds(uses=kind_source('finish(ctx, "x")', tools={"made-up": "some"}))
    sandbox.package("made_up", "1.2")
    sandbox.recipe("t: {kind: uses}\nu: {kind: upper, from: t}")
    sandbox.built()

    sandbox.package("made_up", "1.3")

    assert planned(sandbox) == {"t": "build", "u": "maybe"}
    assert "tool `made-up`: 1.2 → 1.3" in sandbox.run("why", "t").out
    assert sandbox.built().built == ["t"]
    assert "tool `made-up`: 1.2 → 1.3" in sandbox.run("why", "t").out


def test_a_tool_that_is_not_installed_blocks_with_the_command_that_installs_it(sandbox: Sandbox) -> None:
    sandbox.kinds(uses=kind_source(tools={"made-up": "some"}))
    sandbox.recipe("t: {kind: uses}")

    ran = sandbox.run("build")

    assert ran.code == 2
    assert "the package `made-up` is not installed" in ran.err
    assert "pip install 'modelbuild[some]'" in ran.err
    assert "recipes/r.yaml:2:3" in ran.err


def test_a_raised_version_of_a_kind_makes_its_targets_stale(sandbox: Sandbox) -> None:
    sandbox.kinds(mine=kind_source('finish(ctx, "x")'))
    sandbox.recipe("t: {kind: mine}")
    sandbox.built()

    sandbox.kinds(mine=kind_source('finish(ctx, "y")', version=2))

    assert "kind `mine` makes another output since version 2 (was 1)" in sandbox.run("why", "t").out
    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "y"


def test_a_new_option_of_a_kind_enters_the_key(sandbox: Sandbox) -> None:
    sandbox.kinds(mine=kind_source('finish(ctx, "x")'))
    sandbox.recipe("t: {kind: mine}")
    sandbox.built()

    sandbox.kinds(
        mine=kind_source('finish(ctx, "x")').replace('    note: str = ""\n', '    note: str = ""\n    q: int = 3\n')
    )

    assert "option `q`: absent → 3" in sandbox.run("why", "t").out
    assert sandbox.built().built == ["t"]


def test_another_plugin_found_first_on_the_path_is_noticed(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.kinds(mine=kind_source("finish(ctx, spec.note)"))
    sandbox.recipe("t: {kind: mine}")
    sandbox.built()
    sandbox.plugins = tmp_path / "other environment"
    sandbox.kinds(mine=kind_source("finish(ctx, spec.note)").replace('note: str = ""', 'note: str = "other"'))

    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "other"


def test_a_damaged_compiled_recipe_is_read_again(chain: Sandbox) -> None:
    for path in chain.store.glob("graph*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    assert nothing_runs(chain)


def test_a_matrix_value_added_builds_that_variant_and_what_takes_all(sandbox: Sandbox) -> None:
    sandbox.recipe(
        """
        a:   {kind: text, path: a.txt}
        m:   {kind: join, from: [a, a], matrix: {sep: [x, y]}}
        all: {kind: join, from: [m]}
        """
    )
    sandbox.data("a.txt", "1")
    sandbox.built()
    assert sandbox.value("all") == "1x11y1"

    sandbox.edit("[x, y]", "[x, y, z]")

    assert sandbox.built().built == ["m[sep=z]", "all"]
    assert sandbox.value("all") == "1x11y11z1"


def test_a_change_reaches_targets_of_other_recipes(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}", name="one")
    sandbox.recipe("b: {kind: upper, from: 'one:a'}", name="two")
    sandbox.data("a.txt", "x")
    sandbox.built()

    sandbox.data("a.txt", "y")

    assert sandbox.built("two").targets("built") == ["one:a", "two:b"]
    assert sandbox.value("b", recipe="two") == "Y"


def test_a_variable_set_on_the_command_line_changes_what_uses_it(sandbox: Sandbox) -> None:
    sandbox.recipe(
        """vars: {glue: "-"}
targets:
  a: {kind: text, path: a.txt}
  b: {kind: join, from: [a, a], sep: "${glue}"}
"""
    )
    sandbox.data("a.txt", "1")
    sandbox.built()

    assert sandbox.built("--set", "glue=+").built == ["b"]
    assert sandbox.value("b") == "1+1"
    assert sandbox.built().restored == ["b"]


def test_two_cold_builds_in_different_folders_give_the_same_content(chain: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "somewhere else" / "deeper")
    other.recipe(CHAIN)
    other.data("a.txt", "one")
    other.data("b.txt", "two")

    here = {row["target"]: (row["key"], row["digest"]) for row in chain.run("status", "--json").json}
    other.built()
    there = {row["target"]: (row["key"], row["digest"]) for row in other.run("status", "--json").json}

    assert here == there


# --- in words ---------------------------------------------------------------------------------------------------


def test_why_says_that_a_target_was_never_built(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}")
    sandbox.data("a.txt", "1")

    assert "r:a is stale\n  it was never built" in sandbox.run("why", "a").out
    told = sandbox.run("why", "b").out
    assert "r:b is stale\n  it was never built" in told
    assert "above it, r:a is stale" in told


def test_why_says_that_a_target_is_up_to_date_and_why_it_was_last_built(chain: Sandbox) -> None:
    told = chain.run("why", "big").out

    assert told.startswith("r:big is up to date\n")
    assert "last built just now, because\n    it was never built" in told


def test_why_quotes_an_edited_option_before_and_after_the_build(chain: Sandbox) -> None:
    chain.edit('sep: "-"', 'sep: "+"')

    before = chain.run("why", "both").out
    chain.built()
    after = chain.run("why", "both").out

    assert 'r:both is stale\n  option `sep`: "-" → "+"' in before
    assert 'because\n    option `sep`: "-" → "+"' in after


def test_why_names_an_edited_source_and_leads_up_to_it(chain: Sandbox) -> None:
    chain.data("a.txt", "neu")

    assert "source `a.txt` (path) has other content" in chain.run("why", "a").out
    told = chain.run("why", "last").out
    assert "r:last may be stale\n  may rebuild: depends on whether `r:both` comes out different" in told
    assert "above it, r:a is stale\n    source `a.txt` (path) has other content" in told


def test_why_names_the_input_that_changed(chain: Sandbox) -> None:
    chain.data("a.txt", "neu")
    chain.built()

    assert "because\n    input `r:big` (from) has other content" in chain.run("why", "both").out


def test_why_tells_of_inputs_added_to_a_list(chain: Sandbox) -> None:
    chain.edit("[big, b]", "[big, b, a]")

    assert "`from` refers to 3 inputs, before to 2" in chain.run("why", "both").out


def test_why_tells_of_a_restored_target(chain: Sandbox) -> None:
    chain.edit('sep: "-"', 'sep: "+"')
    chain.built()
    chain.edit('sep: "+"', 'sep: "-"')

    before = chain.run("why", "both").out
    chain.built()
    after = chain.run("why", "both").out

    assert "r:both will be restored: what it should be was made before" in before
    assert "last restored just now, because" in after


def test_why_tells_of_a_link_that_is_gone(chain: Sandbox) -> None:
    chain.path("both").unlink()

    assert "its link in the artifacts folder is gone" in chain.run("why", "both").out
    assert chain.built().restored == ["both"]


def test_why_speaks_sense_where_a_link_is_gone_and_an_input_stale(chain: Sandbox) -> None:
    chain.path("both").unlink()
    chain.data("a.txt", "neu")

    told = chain.run("why", "both").out

    assert "may rebuild: depends on whether `r:big` comes out different" in told
    assert "before to 2" not in told
    assert chain.built().built == ["a", "big", "both", "last"]


def test_plan_says_may_rebuild_where_it_depends_on_a_result(chain: Sandbox) -> None:
    chain.data("b.txt", "neu")

    told = chain.run("plan").out

    assert "build  r:b\n" in told
    assert "maybe  r:both\n              may rebuild: depends on whether `r:b` comes out different" in told


def test_plan_of_a_stale_input_and_an_edited_option_promises_the_build(chain: Sandbox) -> None:
    chain.data("a.txt", "neu")
    chain.edit('sep: "-"', 'sep: "+"')

    assert planned(chain)["both"] == "build"


def test_plan_never_promises_less_than_what_runs(chain: Sandbox) -> None:
    edits = [
        lambda: chain.data("a.txt", "neu"),
        lambda: chain.edit('sep: "-"', 'sep: "+"'),
        lambda: chain.path("big").unlink(),
        lambda: chain.edit("from: both", "from: big"),
        lambda: chain.data("b.txt", "anders"),
    ]
    for edit in edits:
        edit()
        foreseen = planned(chain)
        ran = chain.built()
        assert {*ran.built, *ran.restored} <= foreseen.keys()
        assert set(ran.built) <= {t for t, action in foreseen.items() if action in ("build", "maybe")}


def test_plan_builds_nothing_and_leaves_no_store_behind(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "1")

    assert sandbox.run("plan").out == "       build  r:a\n              it was never built\n"
    assert not (sandbox.root / "artifacts").exists()


def test_a_build_says_why_as_it_goes(chain: Sandbox) -> None:
    chain.edit('sep: "-"', 'sep: "+"')

    ran = chain.run("build")

    assert ran.out == ""
    assert 'build r:both (join)\n    because option `sep`: "-" → "+"' in ran.err
    assert "2 built, 4 up to date in" in ran.err
