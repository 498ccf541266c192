"""Builds that fail, inputs that are missing, kinds that misbehave: what is said, what stands, and the exit code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests import mounts
from tests.sandbox import Sandbox, kind_source

CHAIN = """
    a:     {kind: text, path: a.txt}
    risky: {kind: fail, from: a, when: bad}
    under: {kind: upper, from: risky}
    apart: {kind: upper, from: a, salt: s}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("template"))
    sandbox.recipe(CHAIN)
    sandbox.data("a.txt", "good")
    sandbox.built()
    return sandbox


@pytest.fixture
def chain(template: Sandbox, tmp_path: Path) -> Sandbox:
    """`risky` fails as soon as `a.txt` holds `bad`; `under` needs it, `apart` does not."""
    return template.copy(tmp_path)


def fact(ran_problem: dict[str, object], label: str) -> str:
    facts = ran_problem["facts"]
    assert isinstance(facts, list)
    return str(dict(map(tuple, facts))[label])


# --- a build that fails -----------------------------------------------------------------------------------------


def test_a_failed_build_names_stage_cause_log_and_the_command_that_repeats_it(chain: Sandbox) -> None:
    chain.data("a.txt", "bad")

    ran = chain.run("build")

    assert ran.code == 1
    assert "error: the input holds `bad`" in ran.err
    assert "--> recipes/r.yaml:3:3" in ran.err
    assert re.search(r"target: +r:risky \(kind fail\)", ran.err)
    assert re.search(r"log: +\S+/failed/\w{32}/log", ran.err)
    assert re.search(r"repeat: .*modelbuild\.worker \S+/job\.json", ran.err)
    assert "hint:   take it out" in ran.err
    assert "Traceback" not in ran.err


def test_the_repeat_command_repeats_the_stage_alone(sandbox: Sandbox) -> None:
    sandbox.root = sandbox.root.rename(sandbox.root.with_name("with a space"))
    sandbox.recipe(CHAIN)
    sandbox.data("a.txt", "bad")
    (problem,) = sandbox.build().problems
    repeat = fact(problem, "repeat")

    again = sandbox.shell(repeat, cwd=sandbox.root.parent)

    assert again.code == 1
    assert "error: the input holds `bad`" in again.err
    assert sandbox.keys() == {sandbox.key("a")}


def test_the_repeat_command_shows_when_the_stage_was_mended(sandbox: Sandbox) -> None:
    sandbox.kinds(mine=kind_source("raise ValueError('not yet')"))
    sandbox.recipe("t: {kind: mine, note: hello}")
    (problem,) = sandbox.build().problems
    sandbox.kinds(mine=kind_source("ctx.log('mended'); finish(ctx, spec.note)"))

    again = sandbox.shell(fact(problem, "repeat"))

    assert (again.code, "mended" in again.err) == (0, True)
    job = Path(shlex.split(fact(problem, "repeat"))[-1])
    assert (job.parent / "out" / "value.txt").read_text() == "hello"


def test_the_last_good_artifact_stays_usable_after_a_failure(chain: Sandbox) -> None:
    before = {target: chain.key(target) for target in ("a", "risky", "under", "apart")}
    chain.data("a.txt", "bad")

    ran = chain.build("risky", "under")

    assert ran.code == 1
    assert (chain.key("risky"), chain.key("under")) == (before["risky"], before["under"])
    assert (chain.value("risky"), chain.value("under")) == ("good", "GOOD")


def test_without_keep_going_nothing_is_started_after_a_failure(chain: Sandbox) -> None:
    chain.data("a.txt", "bad")

    ran = chain.build()

    assert (ran.code, ran.built, ran.failed) == (1, ["a"], ["risky"])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_keep_going_builds_the_rest_and_says_what_was_skipped(chain: Sandbox, jobs: str) -> None:
    chain.data("a.txt", "bad")

    ran = chain.build("--keep-going", "-j", jobs)

    assert (ran.code, ran.failed, ran.skipped) == (1, ["risky"], ["under"])
    assert ran.built == ["a", "apart"]
    (skipped,) = (e for e in ran.events if e["event"] == "skipped")
    assert skipped["because"] == ["r:risky"]


def test_keep_going_tells_in_words_what_was_skipped(chain: Sandbox) -> None:
    chain.data("a.txt", "bad")

    ran = chain.run("build", "-k")

    assert "skip r:under (needs r:risky)" in ran.err
    assert "1 failed, 1 skipped, 2 built in" in ran.err


def test_a_mended_build_goes_on_and_leaves_the_rest_alone(chain: Sandbox) -> None:
    chain.data("a.txt", "bad")
    chain.build("-k")
    chain.data("a.txt", "fine")

    ran = chain.built()

    assert ran.built == ["a", "risky", "under", "apart"]
    assert chain.value("under") == "FINE"


def test_failing_again_replaces_the_folder_of_the_failure_before(chain: Sandbox) -> None:
    chain.data("a.txt", "bad")

    chain.build()
    chain.build()

    assert len(list((chain.store / "failed").iterdir())) == 1
    assert not list((chain.store / "tmp").iterdir())


# --- inputs that are not there ----------------------------------------------------------------------------------


def test_a_missing_source_stops_before_anything_is_built(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: here.txt}\nb: {kind: text, path: heer.txt}\nc: {kind: join, from: [a, b]}")
    sandbox.data("here.txt", "x")

    ran = sandbox.run("build")

    assert ran.code == 2
    assert "error: `heer.txt` does not exist" in ran.err
    assert "--> recipes/r.yaml:3:" in ran.err
    assert "did you mean `here.txt`?" in ran.err
    assert sandbox.keys() == set()


def test_every_missing_source_is_told_at_once(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: one.txt}\nb: {kind: text, path: two.txt}")

    ran = sandbox.run("build", "--json")

    assert ran.code == 2
    assert [p["title"] for p in ran.json["problems"]] == ["`one.txt` does not exist", "`two.txt` does not exist"]


def test_keep_going_builds_what_needs_no_missing_source(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: here.txt}\nb: {kind: text, path: gone.txt}\nc: {kind: join, from: [a, b]}")
    sandbox.data("here.txt", "x")

    ran = sandbox.build("-k")

    assert (ran.code, ran.built, ran.failed, ran.skipped) == (2, ["a"], ["b"], ["c"])


def test_a_source_that_loops_through_links_is_a_problem(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: loop.txt}")
    (sandbox.root / "recipes" / "loop.txt").symlink_to("loop.txt")

    ran = sandbox.run("build")

    assert ran.code == 2
    assert "`loop.txt`" in ran.err


def test_a_source_that_is_a_device_is_a_problem_and_is_not_read(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: pipe}")
    os.mkfifo(sandbox.root / "recipes" / "pipe")

    ran = sandbox.run("build")

    assert ran.code == 2
    assert "`pipe` is neither a file nor a folder" in ran.err


def test_a_source_edited_while_a_build_reads_it_is_told_and_not_recorded(sandbox: Sandbox) -> None:
    sandbox.kinds(reader=kind_source("import time\ntime.sleep(1)\nfinish(ctx, ctx.sources['path'].read_text())"))
    sandbox.recipe("a: {kind: reader, path: a.txt}")
    sandbox.data("a.txt", "one")

    build = sandbox.start("build")
    _until(lambda: list((sandbox.store / "tmp").glob("*/out")))
    sandbox.data("a.txt", "two")
    _, told = build.communicate(timeout=30)

    assert build.returncode == 1
    assert "`a.txt` changed while the build read it" in told
    assert sandbox.keys() == set()
    assert sandbox.built().built == ["a"]
    assert sandbox.value("a") == "two"


def test_a_source_deleted_while_a_build_reads_it_is_told(sandbox: Sandbox) -> None:
    sandbox.kinds(reader=kind_source("ctx.sources['path'].unlink()\nfinish(ctx, '')"))
    sandbox.recipe("a: {kind: reader, path: a.txt}")
    sandbox.data("a.txt", "one")

    ran = sandbox.build()

    assert (ran.code, [p["title"] for p in ran.problems]) == (1, ["`a.txt` changed while the build read it"])


# --- kinds that misbehave ---------------------------------------------------------------------------------------

DEATHS = {
    "leaves": ("import os; os._exit(0)", "the build's process ended with status 0 before it was done"),
    "leaves_with_3": ("import os; os._exit(3)", "the build's process ended with status 3 before it was done"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "the build's process was ended by SIGSEGV"),
    "aborts": ("import os; os.abort()", "the build's process was ended by SIGABRT"),
    "kills_itself": ("import os; os.kill(os.getpid(), 9)", "the build's process was ended by SIGKILL"),
    "odd_signal": ("import os; os.kill(os.getpid(), 40)", "the build's process was ended by signal 40"),
    "system_exit": ("raise SystemExit(0)", "the build's process ended with status 0 before it was done"),
    "interrupt": ("raise KeyboardInterrupt", "the build's process "),
    "memory": ("raise MemoryError", "out of memory"),
    "odd_text": ("class E(Exception):\n    def __str__(self): raise OSError\nraise E", "the build's process "),
    "no_text": ("class E(Exception):\n    def __str__(self): return ''\nraise E", "E: E()"),
    "many_lines": ("raise ValueError('first\\nsecond')", "ValueError: first"),
    "not_utf8": ("raise ValueError('\\udcff')", "ValueError: \\udcff"),
    "generator": ("raise GeneratorExit", "the build's process "),
    "deep": ("def f(): f()\nf()", "RecursionError: "),
    "no_module": ("import surely_not_there", "the package `surely_not_there` is not installed"),
    "no_problem": ("from modelbuild.errors import ProblemError\nraise ProblemError()", "the build's process "),
    "no_descriptor": ("(ctx.out / 'x').write_text('')", "wrote no descriptor"),
    "bad_descriptor": ("(ctx.out / 'descriptor.json').write_text('{')", "the artifact's `descriptor.json` is not"),
    "symlink": ("finish(ctx, ''); (ctx.out / 'l').symlink_to('value.txt')", "no regular file"),
    "fifo": ("import os; finish(ctx, ''); os.mkfifo(ctx.out / 'f')", "no regular file"),
    "out_gone": ("import shutil; shutil.rmtree(ctx.out)", "wrote no descriptor"),
    "out_elsewhere": (
        "finish(ctx, ''); ctx.out.rename(ctx.scratch / 'o'); ctx.out.symlink_to(ctx.scratch / 'o')",
        "the build removed the folder for its output",
    ),
    "odd_name": ("import os; finish(ctx, ''); open(os.fsencode(ctx.out) + b'/\\xff', 'w')", "name is not UTF-8"),
    "closes_all": ("import os; os.closerange(3, 100)", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """What each misbehaving kind was said to have done, all built in one run that keeps going."""
    sandbox = Sandbox(tmp_path_factory.mktemp("deaths"))
    sandbox.kinds(**{name: kind_source(body) for name, (body, _) in DEATHS.items()})
    sandbox.recipe("\n".join(["fine: {kind: text, path: a.txt}", *(f"{name}: {{kind: {name}}}" for name in DEATHS)]))
    sandbox.data("a.txt", "x")
    ran = sandbox.build("-k", "-j", "2")
    assert (ran.code, ran.built) == (1, ["fine"]), ran
    assert len(sandbox.keys()) == 1
    assert not any(sandbox.path(name).is_symlink() for name in DEATHS)
    return {e["target"].removeprefix("r:"): e["problems"] for e in ran.events if e["event"] == "failed"}


@pytest.mark.parametrize("name", DEATHS)
def test_a_kind_that_misbehaves_is_a_failed_build(deaths: dict[str, list[dict[str, object]]], name: str) -> None:
    (problem,) = deaths[name]

    assert DEATHS[name][1] in str(problem["title"])
    assert fact(problem, "target") == f"r:{name} (kind {name})"
    assert Path(fact(problem, "log")).is_file()


def test_the_log_has_the_whole_traceback(sandbox: Sandbox) -> None:
    sandbox.kinds(mine=kind_source("print('so far so good')\nraise ValueError('no')"))
    sandbox.recipe("t: {kind: mine}")

    (problem,) = sandbox.build().problems

    log = Path(fact(problem, "log")).read_text()
    assert "so far so good" in log
    assert "Traceback" in log
    assert "ValueError: no" in log


def test_a_kind_that_prints_megabytes_neither_hangs_nor_floods(sandbox: Sandbox) -> None:
    sandbox.kinds(
        loud=kind_source("print('x' * 8_000_000)\nimport sys\nsys.stderr.write('y' * 4_000_000)\nfinish(ctx, '')")
    )
    sandbox.recipe("t: {kind: loud}")

    ran = sandbox.run("build")

    assert ran.code == 0
    assert len(ran.out) + len(ran.err) < 1000
    assert (sandbox.store / sandbox.key("t") / "log").stat().st_size > 11_000_000


def test_a_kind_that_waits_for_input_gets_none(sandbox: Sandbox) -> None:
    sandbox.kinds(asks=kind_source("import os, threading\nfinish(ctx, str(os.isatty(0)))"))
    sandbox.recipe("t: {kind: asks}")

    sandbox.built()

    assert sandbox.value("t") == "False"


def test_what_a_kind_leaves_running_ends_with_it(sandbox: Sandbox) -> None:
    body = "import subprocess\nfinish(ctx, str(subprocess.Popen(['sleep', '300']).pid))"
    sandbox.kinds(forks=kind_source(body))
    sandbox.recipe("t: {kind: forks}")

    sandbox.built()

    pid = int(sandbox.value("t"))
    _until(lambda: not _runs(pid))


def test_a_kind_that_changes_the_artifact_it_reads_is_found_out(sandbox: Sandbox) -> None:
    body = "p = ctx.input().path / 'value.txt'\np.chmod(0o644)\np.write_text('worse')\nfinish(ctx, '')"
    sandbox.kinds(vandal=kind_source(body))
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: vandal, from: a}\nc: {kind: upper, from: a}")
    sandbox.data("a.txt", "fine")

    sandbox.build("b")
    sandbox.built("c")

    assert (sandbox.value("a"), sandbox.value("c")) == ("fine", "FINE")


# --- circles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_circle_is_a_problem_with_its_path(sandbox: Sandbox, jobs: str) -> None:
    sandbox.recipe("a: {kind: upper, from: c}\nb: {kind: upper, from: a}\nc: {kind: upper, from: b}")

    ran = sandbox.run("build", "-j", jobs)

    assert ran.code == 2
    assert "targets refer to each other in a circle" in ran.err
    assert "`a` → `c` → `b` → `a`" in ran.err


def test_a_target_of_itself_is_a_circle(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: upper, from: a}")

    ran = sandbox.run("build", "-j", "2")

    assert (ran.code, "`a` → `a`" in ran.err) == (2, True)


# --- disks ------------------------------------------------------------------------------------------------------


def test_a_read_only_store_is_a_problem_where_something_is_to_be_built(chain: Sandbox) -> None:
    mounts.needs_mounts()
    chain.data("a.txt", "new")

    ran = chain.shell(mounts.read_only(chain.root / "artifacts", chain.command("build")))

    assert ran.code == 2
    assert "the artifact store cannot be written" in ran.err
    assert "read-only file system" in ran.err.lower()
    assert chain.value("a") == "good"


@pytest.mark.parametrize("verb", [["build"], ["status"], ["plan"], ["why", "a"], ["show", "a"], ["verify"], ["list"]])
def test_a_read_only_project_that_is_up_to_date_serves(chain: Sandbox, verb: list[str]) -> None:
    mounts.needs_mounts()

    ran = chain.shell(mounts.read_only(chain.root, chain.command(*verb)))

    assert ran.code == 0, ran
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("verb", ["gc", "clean"])
def test_removing_from_a_read_only_store_is_a_problem(chain: Sandbox, verb: str) -> None:
    mounts.needs_mounts()

    ran = chain.shell(mounts.read_only(chain.root, chain.command(verb)))

    assert ran.code == 2
    assert "read-only file system" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("kibibytes", [24, 48, 80, 112, 160])
def test_a_full_disk_is_a_problem_and_loses_nothing(sandbox: Sandbox, kibibytes: int) -> None:
    mounts.needs_mounts()
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: slow, from: a, seconds: 0, bytes: 100000}")
    sandbox.data("a.txt", "x")

    with mounts.small(sandbox.root / "artifacts", kibibytes):
        ran = sandbox.run("build")
        told = sandbox.run("plan")

        assert "Traceback" not in ran.err + told.err
        if ran.code:
            assert "no space left on device" in ran.err.lower()
            assert "`modelbuild gc`" in ran.err
            assert told.code == 0
            subprocess.run(["mount", "-o", "remount,size=4m", str(sandbox.root / "artifacts")], check=True)
            sandbox.built()
        assert sandbox.value("b") == "x"
        assert sandbox.run("verify").code == 0
        assert sandbox.run("gc").code == 0
        assert sandbox.leftovers() == []


def test_a_store_on_another_file_system_than_the_project_works(sandbox: Sandbox) -> None:
    mounts.needs_mounts()
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}")
    sandbox.data("a.txt", "x")

    with mounts.small(sandbox.root / "artifacts", 4096):
        assert sandbox.built().built == ["a", "b"]
        assert sandbox.built().fresh == ["a", "b"]


def test_something_else_in_the_place_of_a_link_is_told_and_kept(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")
    sandbox.path("a").mkdir(parents=True)
    (sandbox.path("a") / "mine.txt").write_text("precious")

    ran = sandbox.run("build")

    assert ran.code != 0
    assert "something that is not ours is in the place of an artifact's link" in ran.err
    assert (sandbox.path("a") / "mine.txt").read_text() == "precious"


def test_a_file_in_the_place_of_the_artifacts_folder_is_told(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")
    (sandbox.root / "artifacts").write_text("?")

    ran = sandbox.run("build")

    assert ran.code == 2
    assert "the artifact store cannot be written" in ran.err


def _until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
