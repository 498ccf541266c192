"""Each verb, in text and as JSON, with its exit codes; signals, pipes, colours and CI."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from modelbuild.cli import COMMANDS
from tests.sandbox import KEY, Ran, Sandbox

RECIPE = """
    a:    {kind: text, path: a.txt}
    big:  {kind: upper, from: a}
    m:    {kind: join, from: [a, big], matrix: {sep: [x, y]}}
    last: {kind: join, from: [m]}
"""
TARGETS = ["r:a", "r:big", "r:m[sep=x]", "r:m[sep=y]", "r:last"]
ON_A_PROJECT = [
    ["build", "big"], ["status"], ["plan"], ["why", "big"], ["list"], ["show", "big"], ["diff", "a", "big"], ["graph"],
    ["report"], ["clean", "-n"], ["gc", "-n"], ["verify"], ["kinds"], ["kinds", "upper"], ["schema"],
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("template"))
    sandbox.recipe(RECIPE)
    sandbox.data("a.txt", "one")
    sandbox.built()
    return sandbox


@pytest.fixture
def built(template: Sandbox, tmp_path: Path) -> Sandbox:
    """Five built targets, two of them variants."""
    return template.copy(tmp_path)


# --- help, usage, problems --------------------------------------------------------------------------------------


def test_help_lists_every_verb(sandbox: Sandbox) -> None:
    told = sandbox.run("--help")

    assert told.code == 0
    assert all(f"  {verb} " in told.out and line in told.out for verb, line in COMMANDS.items())


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_verb_has_help_without_a_project(tmp_path: Path, template: Sandbox, verb: str) -> None:
    told = template.run(verb, "--help", cwd=tmp_path)

    assert told.code == 0
    assert told.out.startswith(f"Usage: modelbuild {verb} ")
    assert told.err == ""


@pytest.mark.parametrize("words", ON_A_PROJECT, ids=" ".join)
def test_each_verb_says_nothing_but_json_on_stdout_with_json(built: Sandbox, words: list[str]) -> None:
    ran = built.run(*words, "--json")

    assert ran.code == 0
    for document in ran.out.splitlines() if words[0] == "build" else [ran.out]:
        json.loads(document)


@pytest.mark.parametrize("words", [w for w in ON_A_PROJECT if w[0] != "build"], ids=" ".join)
def test_each_verb_answers_on_stdout(built: Sandbox, words: list[str]) -> None:
    ran = built.run(*words)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.strip()


def test_no_verb_shows_the_help(sandbox: Sandbox) -> None:
    ran = sandbox.run()

    assert ran.code == 2
    assert "Usage: modelbuild" in ran.out + ran.err


@pytest.mark.parametrize(
    ("words", "title", "hint"),
    [
        (["biuld"], "unknown command `biuld`", "did you mean `build`?"),
        (["zzz"], "unknown command `zzz`", "`modelbuild --help` lists the commands"),
        (["build", "lsat"], "no target matches `lsat`", "did you mean `last`?"),
        (["build", "r:lsat"], "no target matches `r:lsat`", "did you mean `r:last`?"),
        (["build", "m[sep=z]"], "no target matches `m[sep=z]`", "did you mean `m[sep="),
        (["build", "qqq*"], "no target matches `qqq*`", "`modelbuild list` shows every target"),
        (["diff", "m", "a"], "`m` means 2 targets", "name one of them"),
        (["kinds", "uper"], "unknown kind `uper`", "did you mean `upper`?"),
        (["build", "-j", "0"], "invalid value for '-j'", "`modelbuild build --help` shows the options"),
        (["build", "--jbos"], "no such option '--jbos'", "`modelbuild build --help` shows the options"),
        (["build", "--set", "x"], "`--set x` is not NAME=VALUE", ""),
        (["build", "--set", "x=1"], "`--set x`: no recipe has this variable", "declare it"),
        (["build", "-C", "/nowhere/at/all"], "does not exist", ""),
        (["diff", "a", "0" * 32], "the store has no artifact with key", ""),
        (["completion", "tcsh"], "invalid value for '{bash|zsh|fish}'", "shows the options"),
        (["why"], "missing argument 'target'", "`modelbuild why --help` shows the options"),
    ],
)
def test_wrong_usage_exits_2_with_a_suggestion(built: Sandbox, words: list[str], title: str, hint: str) -> None:
    ran = built.run(*words)

    assert (ran.code, ran.out) == (2, "")
    assert title.lower().replace("'", "") in ran.err.lower().replace("'", "")
    assert hint in ran.err
    assert "Traceback" not in ran.err


def test_wrong_usage_with_json_is_json(built: Sandbox) -> None:
    ran = built.run("build", "lsat", "--json")

    assert (ran.code, ran.err) == (2, "")
    (problem,) = ran.json["problems"]
    assert problem == {"title": "no target matches `lsat`", "hint": "did you mean `last`?"}


def test_outside_a_project_the_way_to_one_is_told(template: Sandbox, tmp_path: Path) -> None:
    ran = template.run("build", cwd=tmp_path)

    assert ran.code == 2
    assert "this is not inside a modelbuild project" in ran.err
    assert "`modelbuild init MODEL` writes a first recipe" in ran.err


def test_a_project_is_found_from_below_and_by_option(built: Sandbox, tmp_path: Path) -> None:
    inner = built.root / "recipes" / "deep" / "er"
    inner.mkdir(parents=True)

    assert built.run("list", cwd=inner).out == built.run("list", "-C", str(built.root), cwd=tmp_path).out != ""


# --- build ------------------------------------------------------------------------------------------------------


def test_build_takes_several_patterns(built: Sandbox) -> None:
    built.run("clean")

    assert built.built("m[sep=y]", "r:big").built == ["a", "big", "m[sep=y]"]


def test_build_quietly_says_nothing_but_failures(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: fail, from: a, when: bad}")
    sandbox.data("a.txt", "good")
    assert sandbox.run("build", "-q") == Quiet

    sandbox.data("a.txt", "bad")
    ran = sandbox.run("build", "-q")

    assert (ran.code, ran.out) == (1, "")
    assert "error: the input holds `bad`" in ran.err


def test_build_tells_its_steps_one_line_each_where_there_is_no_terminal(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: slow, seconds: 0.4}")

    ran = sandbox.run("build")

    assert (ran.code, ran.out) == (0, "")
    assert re.search(r"build r:a \(slow\)\n    because it was never built\n", ran.err)
    assert re.search(r"    wait: [3-9]0%\n", ran.err)
    assert re.search(r"done r:a \([\d.]+ s, \d+ B\)\n", ran.err)
    assert "\x1b" not in ran.err


def test_build_on_a_terminal_shows_bars_and_leaves_the_screen_tidy(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: slow, seconds: 0.5}")

    ran = sandbox.shell("script -qec 'python -m modelbuild build' /dev/null", TERM="xterm-256color")

    assert ran.code == 0
    assert "wait" in ran.out
    assert "━" in ran.out
    assert ran.out.rstrip().endswith("s")
    assert "1 built in" in ran.out


def test_no_color_holds_on_a_terminal(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: upper, from: b}")
    line = "script -qec 'python -m modelbuild list' /dev/null"

    plain = sandbox.shell(line, TERM="xterm-256color", NO_COLOR="1")
    colored = sandbox.shell(line, TERM="xterm-256color")

    assert "\x1b[" not in plain.out
    assert "\x1b[1;31m" in colored.out


def test_forced_color_holds_in_a_pipe(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: upper, from: b}")

    assert "\x1b[1;31m" in sandbox.run("list", FORCE_COLOR="1").err


def test_ci_gets_a_table(built: Sandbox, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    built.edit("{kind: upper, from: a}", "{kind: upper, from: a, salt: 'x|y'}")

    built.run("build", GITHUB_STEP_SUMMARY=str(summary))

    text = summary.read_text()
    assert text.startswith("before\n### modelbuild\n")
    assert "| `r:a` | up to date |" in text
    assert "| `r:big` | built, same output |" in text
    assert 'option `salt`: "" → "x\\|y"' in text


def test_ci_gets_its_table_of_a_failure_too(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.recipe("a: {kind: fail}")
    summary = tmp_path / "summary.md"

    assert sandbox.run("build", GITHUB_STEP_SUMMARY=str(summary)).code == 1

    assert "| `r:a` | **failed** |" in summary.read_text()


def test_a_summary_that_cannot_be_written_is_a_problem_and_no_bug(built: Sandbox) -> None:
    ran = built.run("build", GITHUB_STEP_SUMMARY="/nowhere/summary.md")

    assert ran.code == 2
    assert "no such file or directory" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("line", ["list", "graph", "build --json", "status", "schema"])
def test_a_reader_that_goes_away_is_no_bug(built: Sandbox, line: str) -> None:
    ran = built.shell(f"python -m modelbuild {line} | true; echo ${{PIPESTATUS[0]}}")

    assert "Traceback" not in ran.err
    assert "Exception" not in ran.err
    assert ran.out.strip() in ("0", "1")


def test_a_reader_that_goes_away_during_a_build_leaves_a_sound_store(sandbox: Sandbox) -> None:
    sandbox.recipe("\n".join(["a: {kind: slow, seconds: 0.3}", *(f"b{i}: {{kind: upper, from: a}}" for i in range(3))]))

    ran = sandbox.shell("python -m modelbuild build --json | head -1 >/dev/null; echo ${PIPESTATUS[0]}")

    assert "Traceback" not in ran.err
    assert ran.out.strip() == "1"
    sandbox.built()
    assert sandbox.run("verify").code == 0


# --- looking ----------------------------------------------------------------------------------------------------


def test_list_shows_kinds_and_inputs(built: Sandbox) -> None:
    assert built.run("list").out.splitlines()[:3] == [
        "r:a         text",
        "r:big       upper  a",
        "r:m[sep=x]  join   a, big",
    ]
    assert [row["target"] for row in built.run("list", "--json").json] == TARGETS
    assert built.run("list", "--json", "big").json[1:] == [
        {"target": "r:big", "kind": "upper", "inputs": {"from": ["r:a"]}, "sources": {}, "where": "recipes/r.yaml:3:3"}
    ]


def test_status_tells_fresh_from_stale(built: Sandbox) -> None:
    built.edit("{kind: upper, from: a}", "{kind: upper, from: a, salt: x}")

    rows = {row["target"]: row for row in built.run("status", "--json").json}
    told = built.run("status").out

    assert [rows[t]["state"] for t in TARGETS] == ["fresh", "build", "maybe", "maybe", "maybe"]
    assert KEY.fullmatch(rows["r:a"]["key"])
    assert rows["r:a"]["size"] > 0
    assert re.search(r"^up to date +r:a +\d+ B +just now", told, re.MULTILINE)
    assert re.search(r"^stale +r:big .*option `salt`", told, re.MULTILINE)
    assert re.search(r"^maybe stale +r:last", told, re.MULTILINE)


def test_status_shows_what_cannot_be_built(built: Sandbox) -> None:
    (built.root / "recipes" / "a.txt").unlink()

    ran = built.run("status")

    assert ran.code == 0
    assert re.search(r"^blocked +r:a +`a.txt` does not exist", ran.out, re.MULTILINE)


def test_plan_of_an_up_to_date_project_says_so(built: Sandbox) -> None:
    assert built.run("plan").out == "nothing to do: 5 targets are up to date\n"


def test_show_tells_where_what_and_how(built: Sandbox) -> None:
    told = built.run("show", "big").out
    (data,) = built.run("show", "big", "--json").json

    assert told.startswith("r:big (upper)\n")
    assert str(built.path("big")) in told
    assert re.search(r'option.salt +""', told)
    assert "value.txt" in told
    assert data["key"] == built.key("big")
    assert data["record"]["manifest"]["kind"] == "upper"
    assert data["descriptor"]["format"] == "text"


def test_show_of_a_target_with_variants_shows_them_all(built: Sandbox) -> None:
    assert [row["target"] for row in built.run("show", "m", "--json").json] == ["r:m[sep=x]", "r:m[sep=y]"]


def test_show_of_what_was_never_built_says_how_to_build_it(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")

    ran = sandbox.run("show", "a")

    assert (ran.code, "`modelbuild build r:a` makes it" in ran.err) == (2, True)


def test_diff_compares_how_and_what(built: Sandbox) -> None:
    told = built.run("diff", "m[sep=x]", "m[sep=y]").out
    data = built.run("diff", "m[sep=x]", "m[sep=y]", "--json").json

    assert re.search(r'option.sep +"x" +"y"', told)
    assert "files that differ: value.txt" in told
    assert data["made"] == [{"fact": "option.sep", "old": '"x"', "new": '"y"'}]
    assert data["same_content"] is False


def test_diff_takes_keys_of_earlier_builds(built: Sandbox) -> None:
    before = built.key("a")
    built.data("a.txt", "two")
    built.built("a")

    told = built.run("diff", before, "a").out

    assert "source.path" in told
    assert "files that differ: value.txt" in told


def test_graph_draws_mermaid_and_dot(built: Sandbox) -> None:
    mermaid, dot = built.run("graph").out, built.run("graph", "--format", "dot").out

    assert mermaid.startswith("flowchart LR\n")
    assert 't2["r:m#91;sep=x#93;<br/><i>join</i>"]' in mermaid
    assert "t0 --> t1" in mermaid
    assert dot.startswith("digraph modelbuild {")
    assert '"r:a" -> "r:big";' in dot
    assert dot.count("{") == dot.count("}")


def test_graph_of_one_target_has_what_it_needs(built: Sandbox) -> None:
    data = built.run("graph", "big", "--json").json

    assert data == {"nodes": ["r:a", "r:big"], "edges": [["r:a", "r:big", "from"]]}


def test_kinds_lists_plugins_and_documents_them(sandbox: Sandbox) -> None:
    assert re.search(r"^upper +The input in upper case", sandbox.run("kinds").out, re.MULTILINE)
    page = sandbox.run("kinds", "upper").out
    assert "`from`" in page
    assert "`salt`" in page
    facts = sandbox.run("kinds", "upper", "--json").json
    assert facts["module"] == "modelbuild_textkinds.upper"
    assert [o["name"] for o in facts["options"]] == ["from", "salt"]


def test_schema_knows_the_plugins_kinds(sandbox: Sandbox) -> None:
    schema = sandbox.run("schema").out

    assert '"upper"' in schema
    assert sandbox.run("schema", "--json").json == json.loads(schema)


def test_completion_scripts_are_sound(sandbox: Sandbox) -> None:
    assert sandbox.shell("python -m modelbuild completion bash | bash -n").code == 0
    assert "_MODELBUILD_COMPLETE" in sandbox.run("completion", "zsh").out
    assert "_MODELBUILD_COMPLETE" in sandbox.run("completion", "fish").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sta", "status"),
        ("build bi", "big"),
        ("build r:l", "r:last"),
        ("show m", "m[sep=x]"),
        ("build --keep", "--keep-going"),
    ],
)
def test_the_shell_completes_verbs_options_and_targets(built: Sandbox, words: str, expected: str) -> None:
    line = f"modelbuild {words}"

    told = built.run(_MODELBUILD_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1))

    assert expected in [row.partition(",")[2] for row in told.out.splitlines()]


def test_init_writes_a_recipe_that_loads(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(b"")

    ran = sandbox.run("init", "net.onnx", cwd=folder)

    assert ran.code == 0
    assert "next: modelbuild build net" in ran.out
    assert sandbox.run("list", cwd=folder).out.splitlines()[0].startswith("net:onnx ")
    assert (folder / "artifacts" / ".gitignore").exists()
    assert sandbox.run("init", "net.onnx", cwd=folder).code == 2
    assert sandbox.run("init", "net.onnx", "--force", cwd=folder).code == 0
    assert (
        sandbox.run("init", "net.onnx", "--name", "other", "--json", cwd=folder).json["next"]
        == "modelbuild build other"
    )


@pytest.mark.parametrize("name", ["with space.onnx", "a, b}.onnx", "ünder: #x.onnx", "1e5.onnx"])
def test_init_quotes_what_yaml_would_take_for_something_else(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")

    assert sandbox.run("init", name, "--name", "m", cwd=tmp_path).code == 0

    assert sandbox.run("list", "--json", "m:onnx", cwd=tmp_path).json[0]["sources"] == {"path": f"../{name}"}


def test_init_takes_no_name_that_leads_elsewhere(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")

    ran = sandbox.run("init", "net.onnx", "--name", "../../net", cwd=tmp_path)

    assert (ran.code, "cannot be a recipe's name" in ran.err) == (2, True)


@pytest.mark.parametrize("model", ["nothing-here", "gone.onnx", "org/model", "a/b/c"])
def test_init_of_what_is_no_model_is_a_problem(sandbox: Sandbox, tmp_path: Path, model: str) -> None:
    ran = sandbox.run("init", model, cwd=tmp_path, HF_HOME=str(tmp_path / "none"))

    assert (ran.code, ran.out) == (2, "")
    assert not (tmp_path / "recipes").exists()


def test_doctor_looks_at_everything_and_exits_by_what_it_finds(built: Sandbox) -> None:
    ran = built.run("doctor")

    assert ran.code == 0, ran
    assert "kind upper: needs nothing" in ran.out
    assert "recipes: 1 with 5 targets" in ran.out

    built.edit("kind: upper", "kind: uper")
    wrong = built.run("doctor", "--json")

    assert wrong.code == 1
    assert {"state": "wrong", "about": "recipes", "found": "1 problem", "remedy": "`modelbuild list` shows them"} in (
        wrong.json
    )


# --- removing ---------------------------------------------------------------------------------------------------


def test_clean_removes_artifacts_and_links_and_the_next_build_makes_them(built: Sandbox) -> None:
    assert built.run("clean", "-n", "big").out.startswith("would remove 1 artifacts")
    assert built.value("big") == "ONE"

    assert built.run("clean", "big").out.startswith("removed 1 artifacts")
    assert not built.path("big").is_symlink()
    assert built.built().built == ["big"]


def test_clean_of_all_leaves_no_artifact(built: Sandbox) -> None:
    removed = built.run("clean", "--json").json

    assert len(removed["removed"]) == 5
    assert built.keys() == set()
    assert not (built.root / "artifacts" / "r").exists()


def test_clean_keeps_what_another_target_links_to(built: Sandbox) -> None:
    built.edit("last: {", "twin: {kind: upper, from: a}\n  last: {")
    built.built()

    assert built.run("clean", "big").out.startswith("removed 0 artifacts")
    assert built.value("twin") == "ONE"


def test_gc_removes_what_no_recipe_names(built: Sandbox) -> None:
    kept = built.keys()
    built.data("a.txt", "two")
    built.built()
    built.edit("last: {kind: join, from: [m]}", "")

    dry = built.run("gc", "-n", "--json").json
    assert dry["dry_run"] is True
    assert len(dry["removed"]) == 6
    assert dry["links"] == [["r", "last"]]
    assert len(built.keys()) == 10

    assert "6 artifacts, 0 leftovers" in built.run("gc").out
    assert len(built.keys()) == 4
    assert not built.keys() & kept
    assert not built.path("last").is_symlink()
    assert built.built().built == []


def test_gc_keeps_what_is_young_where_asked_to(built: Sandbox) -> None:
    built.data("a.txt", "two")
    built.built()

    refused = built.run("gc", "--keep-days", "nan")
    assert refused.code == 2
    assert "`nan` is no number of days" in refused.err
    assert "0 artifacts" in built.run("gc", "--keep-days", "1").out
    assert "5 artifacts" in built.run("gc", "--keep-days", "0").out


def test_gc_never_removes_what_is_linked(built: Sandbox) -> None:
    built.data("a.txt", "two")
    linked = {built.key(t) for t in ("a", "big", "m[sep=x]", "m[sep=y]", "last")}

    built.run("gc")

    assert built.keys() == linked
    assert built.value("big") == "ONE"


def test_gc_removes_failures_and_what_killed_builds_left(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: fail}\nb: {kind: slow, seconds: 60}")
    sandbox.build("a")
    build = sandbox.start("build", "b")
    _until(lambda: list((sandbox.store / "tmp").glob("*/out")))
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    assert len(sandbox.leftovers()) == 3

    assert "3 leftovers" in sandbox.run("gc").out
    assert sandbox.leftovers() == []


def test_gc_waits_for_a_running_build_and_takes_nothing_it_needs(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: slow, from: a, seconds: 1}\nc: {kind: upper, from: b}")
    sandbox.data("a.txt", "x")
    build = sandbox.start("build", "--json")
    _until(lambda: list((sandbox.store / "tmp").glob("*/out/data.bin")))

    ran = sandbox.run("gc")
    build.communicate(timeout=30)

    assert (ran.code, build.returncode) == (0, 0)
    assert "waiting for running builds to end" in ran.err
    assert sandbox.value("c") == "X"
    assert sandbox.built().fresh == ["a", "b", "c"]


def test_removing_where_there_is_no_store_yet_makes_none(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")

    assert (sandbox.run("gc").code, sandbox.run("clean").code, sandbox.run("verify").code) == (0, 0, 0)
    assert not (sandbox.root / "artifacts").exists()


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "number", "whole_group"),
    [
        ("1", signal.SIGINT, True),
        ("2", signal.SIGINT, False),
        ("1", signal.SIGTERM, False),
        ("2", signal.SIGTERM, True),
        ("2", signal.SIGHUP, False),
    ],
)
def test_an_interrupted_build_exits_130_and_leaves_nothing(
    sandbox: Sandbox, jobs: str, number: signal.Signals, whole_group: bool
) -> None:
    sandbox.recipe("a: {kind: slow, seconds: 60}\nb: {kind: slow, seconds: 50}")
    build = sandbox.start("build", "-j", jobs)
    _until(lambda: len(list((sandbox.store / "tmp").glob("*/out/data.bin"))) == int(jobs))

    os.killpg(build.pid, number) if whole_group else build.send_signal(number)
    _, told = build.communicate(timeout=20)

    assert build.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told
    _until(lambda: not _workers(sandbox))
    assert not list((sandbox.store / "tmp").iterdir())
    assert sandbox.keys() == set()


def test_a_driver_that_is_killed_takes_its_builds_with_it(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: slow, seconds: 60}")
    build = sandbox.start("build")
    _until(lambda: list((sandbox.store / "tmp").glob("*/out/data.bin")))

    build.kill()
    build.wait()

    _until(lambda: not _workers(sandbox))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_wait_for_another_builder_ends_at_once(sandbox: Sandbox, jobs: str) -> None:
    sandbox.recipe("a: {kind: slow, seconds: 60}")
    first = sandbox.start("build")
    _until(lambda: list((sandbox.store / "tmp").glob("*/out/data.bin")))
    second = sandbox.start("build", "-j", jobs)
    assert second.stderr is not None
    assert "another process builds the same thing" in second.stderr.readline()

    started = time.monotonic()
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=20)

    assert second.returncode == 130
    assert time.monotonic() - started < 3
    first.kill()
    first.communicate()


class _Quiet:
    """Equal to a command that succeeded without a word."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ran) and (other.code, other.out, other.err) == (0, "", "")

    __hash__ = None  # type: ignore[assignment]


Quiet = _Quiet()


def _until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.02)


def _workers(sandbox: Sandbox) -> list[int]:
    """Processes that build something of this project."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"modelbuild.worker" in line and str(sandbox.store).encode() in line:
                found.append(int(folder.name))
    return found
