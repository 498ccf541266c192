"""Sources and stores that file systems make odd: links, twins, long names, coarse clocks, many files, other users.

Short here; `MODELBUILD_FAULT_FILES=100000 pytest -s tests/faults/test_sources.py -k many` is the long form of the last.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbuild.digest import FINE_GRAIN_NS
from tests import mounts
from tests.sandbox import Ran, Sandbox, kind_source

FILES = int(os.environ.get("MODELBUILD_FAULT_FILES", "3000"))
LISTS = """\
root = ctx.sources["path"]
finish(ctx, ", ".join(f"{p.relative_to(root)}={p.read_text()}" for p in ctx.source_files("path")))"""


@pytest.fixture
def folder(sandbox: Sandbox) -> Path:
    """The source of `t`, a folder with two files; `t` holds every file's name and content."""
    sandbox.kinds(lists=kind_source(LISTS))
    sandbox.recipe("t: {kind: lists, path: data}")
    sandbox.data("data/a", "1")
    sandbox.data("data/sub/b", "2")
    sandbox.built()
    assert sandbox.value("t") == "a=1, sub/b=2"
    return sandbox.root / "recipes" / "data"


def rest() -> None:
    """Let the timestamp grain pass, so that digests are remembered by stat."""
    time.sleep(2 * FINE_GRAIN_NS / 1e9)


# --- links ------------------------------------------------------------------------------------------------------


def test_a_file_replaced_by_a_link_counts_by_what_it_leads_to(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("1")
    (folder / "a").unlink()
    (folder / "a").symlink_to(elsewhere)
    assert sandbox.built().fresh == ["t"]

    elsewhere.write_text("3")

    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "a=3, sub/b=2"


def test_a_link_that_leads_to_another_file_of_the_same_size_and_time_counts(sandbox: Sandbox, folder: Path) -> None:
    one, two = folder.parent / "one", folder.parent / "two"
    for path, text in ((one, "x"), (two, "y")):
        path.write_text(text)
        os.utime(path, (10**9, 10**9))
    (folder / "a").unlink()
    (folder / "a").symlink_to(one)
    rest()
    sandbox.built()

    (folder / "a").unlink()
    (folder / "a").symlink_to(two)

    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "a=y, sub/b=2"


def test_what_lies_behind_a_linked_folder_counts(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "sub", tmp_path / "moved")
    (folder / "sub").symlink_to(tmp_path / "moved")
    assert sandbox.built().fresh == ["t"]
    rest()
    sandbox.built()

    (tmp_path / "moved" / "b").write_text("3")

    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "a=1, sub/b=3"


def test_links_in_circles_are_passed_over(sandbox: Sandbox, folder: Path) -> None:
    (folder / "here").symlink_to(".")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / "nowhere").symlink_to("/does/not/exist")
    (folder / "x").symlink_to("y")
    (folder / "y").symlink_to("x")

    ran = sandbox.built()

    assert ran.fresh == ["t"]


def test_links_that_multiply_are_refused_fast(sandbox: Sandbox, folder: Path) -> None:
    """Twelve folders, each with ten links to the next: 10**12 ways to one file."""
    for level in range(12):
        (folder / f"l{level}").mkdir()
        for way in range(10):
            (folder / f"l{level}" / f"w{way}").symlink_to(f"../l{level + 1}")
    started = time.monotonic()

    ran = sandbox.build()

    assert ran.code == 2
    assert "has more than 200,000 files" in ran.problems[0]["title"]
    assert time.monotonic() - started < 60


def test_a_folder_that_may_not_be_read_is_a_problem(sandbox: Sandbox, folder: Path) -> None:
    as_nobody()
    (folder / "sub").chmod(0)
    open_to_all(sandbox)
    (folder / "sub").chmod(0)

    ran = nobody(sandbox, "status", "--json")

    (folder / "sub").chmod(0o755)
    assert ran.json[0]["state"] == "blocked"
    assert "cannot be read" in ran.json[0]["problems"][0]["title"]


# --- shapes and names -------------------------------------------------------------------------------------------


def test_a_folder_turned_into_a_file_and_back(sandbox: Sandbox, folder: Path) -> None:
    shutil.rmtree(folder / "sub")
    (folder / "sub").write_text("file")
    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "a=1, sub=file"

    (folder / "sub").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_text("2")

    assert sandbox.built().restored == ["t"]


def test_the_source_itself_turned_into_a_file(sandbox: Sandbox) -> None:
    sandbox.kinds(either=kind_source("finish(ctx, 'folder' if ctx.sources['path'].is_dir() else 'file')"))
    sandbox.recipe("t: {kind: either, path: data}")
    sandbox.data("data/a", "1")
    sandbox.built()
    shutil.rmtree(sandbox.root / "recipes" / "data")
    sandbox.data("data", "1")

    assert sandbox.built().built == ["t"]
    assert sandbox.value("t") == "file"


def test_twins_in_case_and_in_normal_form_are_two_files(sandbox: Sandbox, folder: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    names = {"A": "3", composed: "4", taken_apart: "5"}
    for name, text in names.items():
        (folder / name).write_text(text)
    if len(list(folder.iterdir())) < 5:
        pytest.skip("this file system takes the twins for one file")
    sandbox.built()
    assert set(sandbox.value("t").split(", ")) == {"a=1", "sub/b=2", *(f"{n}={t}" for n, t in names.items())}

    (folder / composed).write_text("5")
    (folder / taken_apart).write_text("4")

    assert sandbox.built().built == ["t"]


def test_twins_in_an_artifact_are_kept_apart(sandbox: Sandbox) -> None:
    pairs = [("a", "1"), ("A", "2"), ("e\u0301", "3"), ("\u00e9", "4")]
    body = f"for name, text in {pairs!a}:\n    (ctx.out / name).write_text(text)\nfinish(ctx, '')"
    sandbox.kinds(twins=kind_source(body))
    sandbox.recipe("t: {kind: twins}")
    sandbox.built()

    assert sandbox.run("verify").code == 0
    assert [(sandbox.path("t") / name).read_text() for name, _ in pairs] == ["1", "2", "3", "4"]


def test_names_as_long_as_the_file_system_takes(sandbox: Sandbox, folder: Path) -> None:
    (folder / ("n" * 255)).write_text("long")
    deep = folder
    while len(str(deep)) < 3000:
        deep /= "d" * 200
    os.makedirs(deep)  # noqa: PTH103
    (deep / "f").write_text("deep")

    assert sandbox.built().built == ["t"]
    assert "=deep" in sandbox.value("t")


def test_names_longer_than_the_file_system_takes_are_problems(sandbox: Sandbox) -> None:
    sandbox.recipe(f"t: {{kind: text, path: {'n' * 300}}}\nu: {{kind: text, path: {'d/' * 3000}x}}")

    ran = sandbox.build()

    assert ran.code == 2
    assert len(ran.problems) == 2
    assert all("file name too long" in str(p).lower() or "does not exist" in p["title"] for p in ran.problems)


def test_the_longest_names_of_targets_build(sandbox: Sandbox) -> None:
    name, value = "t" * 100, "v" * 80
    sandbox.recipe(
        f"{name}: {{kind: text, path: a.txt}}\nu: {{kind: upper, from: {name}, matrix: {{salt: [{value}]}}}}"
    )
    sandbox.data("a.txt", "x")

    assert len(sandbox.built().built) == 2
    assert sandbox.built().built == []


def test_trees_that_differ_in_how_lines_break_in_a_name_differ(sandbox: Sandbox, folder: Path) -> None:
    """`x` and `y` beside each other, against one file whose name is made of a line of the tree's digest."""
    from modelbuild import digest

    x, y = digest.of_bytes(b"x"), digest.of_bytes(b"y")
    assert digest.of_tree([("x", x), ("y", y)]) != digest.of_tree([(f"x\n{y} y" if x < y else f"y\n{x} x", min(x, y))])


# --- clocks -----------------------------------------------------------------------------------------------------


def test_whole_seconds_hide_no_change(sandbox: Sandbox, folder: Path) -> None:
    for number in range(4):
        (folder / "a").write_text(str(number))
        os.utime(folder / "a", (10**9, 10**9))
        sandbox.built()
        assert sandbox.value("t") == f"a={number}, sub/b=2"


@pytest.fixture
def coarse(sandbox: Sandbox, tmp_path: Path) -> Iterator[None]:
    """The whole project on an ext4 of 128-byte inodes, which keeps all three timestamps in whole seconds."""
    mounts.needs_mounts()
    image = tmp_path / "coarse.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    make = ["mkfs.ext4", "-q", "-I", "128", str(image)]
    for command in (make, ["mount", "-o", "loop", str(image), str(sandbox.root)]):
        if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"`{shlex.join(command[:2])}` of a file system of coarse timestamps does not work here")
    (sandbox.root / "recipes").mkdir()
    yield
    subprocess.run(["umount", "-l", str(sandbox.root)], check=True)


@pytest.mark.usefixtures("coarse")
def test_a_clock_of_whole_seconds_hides_no_change(sandbox: Sandbox) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")
    for number in range(6):
        sandbox.data("a.txt", str(number))
        sandbox.built()
        assert sandbox.value("a") == str(number)
    assert sandbox.path("a").stat().st_ctime_ns % 10**9 == 0, "the clock is coarse"


def test_sources_on_a_file_system_of_their_own(sandbox: Sandbox) -> None:
    mounts.needs_mounts()
    with mounts.small(sandbox.root / "recipes", 1000):
        sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}")
        for text in ("one", "two"):
            sandbox.data("a.txt", text)
            sandbox.built()
            assert sandbox.value("b") == text.upper()
        rest()
        assert sandbox.built().built == []


# --- stores that move -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mv {0} {1}", "cp -a {0} {1}", "tar c -C {0} . | (mkdir {1}; tar x -C {1})"])
def test_a_store_that_is_moved_or_copied_serves(sandbox: Sandbox, folder: Path, tmp_path: Path, how: str) -> None:
    other = sandbox.copy(tmp_path / "other")
    shutil.rmtree(other.root)
    subprocess.run(["bash", "-c", how.format(sandbox.root, other.root)], check=True)

    assert other.built().fresh == ["t"]
    assert other.run("verify").code == 0
    assert other.value("t") == "a=1, sub/b=2"
    (other.root / "recipes" / "data" / "a").write_text("new")
    assert other.built().built == ["t"]


def test_a_store_of_another_user_serves_who_may_only_read_it(sandbox: Sandbox, folder: Path) -> None:
    as_nobody()
    open_to_all(sandbox)

    assert nobody(sandbox, "build", "--json").fresh == ["t"]
    for verb in ("status", "plan", "why t", "show t", "verify", "list", "graph"):
        ran = nobody(sandbox, *verb.split())
        assert ran.code == 0, (verb, ran)
    (folder / "a").write_text("new")
    ran = nobody(sandbox, "build", "--json")
    assert (ran.code, ran.problems[0]["title"]) == (2, "the artifact store cannot be written")
    for verb in ("gc", "clean", "pin t"):
        ran = nobody(sandbox, *verb.split())
        assert ran.code == 2, (verb, ran)
        assert "permission denied" in ran.err.lower()


def as_nobody() -> None:
    """Skip the test where no other user's place can be taken."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can run commands as another user")


def open_to_all(sandbox: Sandbox) -> None:
    for path in (sandbox.root, sandbox.plugins, *sandbox.root.parents[:3]):
        if str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o055)
    subprocess.run(["chmod", "-R", "go+rX", str(sandbox.root), str(sandbox.plugins)], check=True)


def nobody(sandbox: Sandbox, *arguments: str) -> Ran:
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return sandbox.shell(shlex.join([*become, *sandbox.command(*arguments)]))


# --- many files -------------------------------------------------------------------------------------------------


def test_a_checkpoint_folder_of_many_files_costs_time_and_memory_in_proportion(sandbox: Sandbox) -> None:
    sandbox.kinds(counts=kind_source("finish(ctx, str(len(ctx.source_files('path'))))"))
    sandbox.recipe("t: {kind: counts, path: many}")
    many = sandbox.root / "recipes" / "many"
    many.mkdir()
    for number in range(FILES):
        (many / f"{number:06}").write_bytes(b"%d" % number)
    rest()

    told = []
    for what in ("first build", "no-op build", "one file edited"):
        if what == "one file edited":
            (many / "000000").write_bytes(b"edited")
        started = time.monotonic()
        ran = sandbox.shell(
            f"/usr/bin/env python3 -c {shlex.quote(MEASURE)} {shlex.join(sandbox.command('build', '-q'))}"
        )
        told.append((what, time.monotonic() - started, float(ran.out.split()[-1])))
        assert ran.code == 0, ran

    for what, seconds, megabytes in told:
        print(f"{FILES:,} files, {what}: {seconds:.2f} s, {megabytes:.0f} MB")  # noqa: T201 - what the long form reports
    assert sandbox.value("t") == str(FILES)
    assert all(seconds < 5 + FILES / 1000 and megabytes < 100 + FILES / 200 for _, seconds, megabytes in told)


MEASURE = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
    " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000); sys.exit(code)"
)
"""Runs a command and prints its peak memory in MB."""
