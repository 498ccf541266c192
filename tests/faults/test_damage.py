"""Every kind of damage to the store is found by the next build, healed, and never shipped downstream."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbuild.digest import FINE_GRAIN_NS
from tests.sandbox import Sandbox, kind_source

RECIPE = """
    a:     {kind: text, path: a.txt}
    files: {kind: several, from: a}
    last:  {kind: reads, from: files}
"""
SEVERAL = """\
text = ctx.input().path.joinpath("value.txt").read_text()
(ctx.out / "sub").mkdir()
(ctx.out / "sub" / "one.txt").write_text(text + "1")
(ctx.out / "sub" / "two.txt").write_text(text + "2")
finish(ctx, text)"""
READS = "finish(ctx, ''.join(p.read_text() for p in sorted(ctx.input().path.rglob('*.txt'))))"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("template"))
    sandbox.kinds(several=kind_source(SEVERAL), reads=kind_source(READS))
    sandbox.recipe(RECIPE)
    sandbox.data("a.txt", "hi")
    sandbox.built()
    return sandbox


@pytest.fixture
def built(template: Sandbox, tmp_path: Path) -> Sandbox:
    """Three built targets, a → files → last, whose digests are all known by stat."""
    sandbox = template.copy(tmp_path)
    time.sleep(2 * FINE_GRAIN_NS / 1e9)
    assert sandbox.built().fresh == ["a", "files", "last"]
    return sandbox


def write(path: Path, data: bytes) -> None:
    """Change a file of the store, which is read-only, in place."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    path.chmod(0o444)


def one(sandbox: Sandbox) -> Path:
    return sandbox.path("files") / "sub" / "one.txt"


def flip(sandbox: Sandbox) -> None:
    write(one(sandbox), b"ha1")


def flip_and_restore_the_time(sandbox: Sandbox) -> None:
    before = one(sandbox).stat()
    write(one(sandbox), b"ha1")
    os.utime(one(sandbox), ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(sandbox: Sandbox) -> None:
    write(one(sandbox), b"")


def grow(sandbox: Sandbox) -> None:
    write(one(sandbox), b"hi1 and more")


def delete(sandbox: Sandbox) -> None:
    one(sandbox).unlink()


def add_a_file(sandbox: Sandbox) -> None:
    (one(sandbox).parent / "zero.txt").write_text("0")


def add_a_folder(sandbox: Sandbox) -> None:
    (one(sandbox).parent / "empty").mkdir()


def swap(sandbox: Sandbox) -> None:
    folder = one(sandbox).parent
    (folder / "one.txt").rename(folder / "x")
    (folder / "two.txt").rename(folder / "one.txt")
    (folder / "x").rename(folder / "two.txt")


def rename_over_with_the_same_size_and_time(sandbox: Sandbox) -> None:
    before = one(sandbox).stat()
    other = one(sandbox).with_name("other")
    other.write_bytes(b"ha1")
    other.chmod(0o444)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(one(sandbox))


def replace_by_a_link(sandbox: Sandbox) -> None:
    elsewhere = sandbox.data("elsewhere", "hi1")
    one(sandbox).unlink()
    one(sandbox).symlink_to(elsewhere)


def replace_by_a_folder(sandbox: Sandbox) -> None:
    one(sandbox).unlink()
    one(sandbox).mkdir()


def turn_a_folder_into_a_file(sandbox: Sandbox) -> None:
    folder = one(sandbox).parent
    shutil.rmtree(folder)
    folder.write_text("x")


def make_executable(sandbox: Sandbox) -> None:
    one(sandbox).chmod(0o555)


def delete_all_files(sandbox: Sandbox) -> None:
    shutil.rmtree(sandbox.path("files").resolve())


def delete_the_artifact(sandbox: Sandbox) -> None:
    shutil.rmtree(sandbox.store / sandbox.key("files"))


def replace_the_artifact_by_a_file(sandbox: Sandbox) -> None:
    path = sandbox.store / sandbox.key("files")
    shutil.rmtree(path)
    path.write_text("x")


def record(sandbox: Sandbox) -> Path:
    return sandbox.store / sandbox.key("files") / "record.json"


def delete_the_record(sandbox: Sandbox) -> None:
    record(sandbox).unlink()


def truncate_the_record(sandbox: Sandbox) -> None:
    record(sandbox).write_bytes(record(sandbox).read_bytes()[:-20])


def flip_in_the_record(sandbox: Sandbox) -> None:
    text = record(sandbox).read_bytes()
    record(sandbox).write_bytes(text.replace(b'"size":3', b'"size":4', 1))


def take_the_record_of_another(sandbox: Sandbox) -> None:
    shutil.copy(sandbox.store / sandbox.key("a") / "record.json", record(sandbox))


def swap_artifacts(sandbox: Sandbox) -> None:
    first, second = sandbox.store / sandbox.key("files"), sandbox.store / sandbox.key("a")
    first.rename(sandbox.store / "x")
    second.rename(first)
    (sandbox.store / "x").rename(second)


DAMAGES: list[Callable[[Sandbox], None]] = [
    flip, flip_and_restore_the_time, truncate, grow, delete, add_a_file, add_a_folder, swap,
    rename_over_with_the_same_size_and_time, replace_by_a_link, replace_by_a_folder, turn_a_folder_into_a_file,
    make_executable, delete_all_files, delete_the_artifact, replace_the_artifact_by_a_file, delete_the_record,
    truncate_the_record, flip_in_the_record, take_the_record_of_another, swap_artifacts,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_found_and_never_ships_downstream(built: Sandbox, damage: Callable[[Sandbox], None]) -> None:
    damage(built)
    built.edit("{kind: reads, from: files}", "{kind: reads, from: files, note: again}")

    verified = built.run("verify", "--json")
    ran = built.built("last")

    assert (verified.code, "r:files" in verified.json["damaged"]) == (1, True)
    assert {"files", "last"} <= set(ran.built)
    assert built.value("last") == "hi1hi2hi"
    assert one(built).read_text() == "hi1"


@pytest.mark.parametrize(
    "damage", [flip_and_restore_the_time, add_a_file, delete_the_artifact, flip_in_the_record], ids=lambda d: d.__name__
)
def test_healed_damage_rebuilds_nothing_else(built: Sandbox, damage: Callable[[Sandbox], None]) -> None:
    key = built.key("last")
    damage(built)

    told = built.run("why", "files").out
    ran = built.built()

    assert "damaged" in told or "no longer in the store" in told
    assert (ran.built, ran.fresh) == (["files"], ["a", "last"])
    assert built.key("last") == key
    assert built.run("verify").code == 0
    assert built.built().fresh == ["a", "files", "last"]


@pytest.mark.parametrize("damage", [flip_and_restore_the_time, delete_the_record], ids=lambda d: d.__name__)
def test_damaged_content_is_never_restored(built: Sandbox, damage: Callable[[Sandbox], None]) -> None:
    damage(built)
    built.path("files").unlink()

    assert "files" in built.built().built


def test_show_and_diff_refuse_a_damaged_artifact(built: Sandbox) -> None:
    flip(built)

    assert built.run("show", "files").code == 2
    assert "`sub/one.txt` has other content" in built.run("diff", "files", "a").err


def test_an_edit_through_the_link_is_taken_back_by_the_next_build(built: Sandbox) -> None:
    path = built.path("files") / "value.txt"
    path.chmod(0o644)
    path.write_text("mine now")

    ran = built.built()

    assert (ran.built, built.value("files")) == (["files"], "hi")


def test_artifacts_are_read_only(built: Sandbox) -> None:
    files = [p for p in built.path("files").rglob("*") if p.is_file()]

    assert {p.stat().st_mode & 0o222 for p in files} == {0}


# --- links ------------------------------------------------------------------------------------------------------


def test_a_deleted_link_is_made_again(built: Sandbox) -> None:
    built.path("files").unlink()

    ran = built.built()

    assert (ran.built, ran.restored) == ([], ["files"])


def test_all_links_deleted_are_made_again(built: Sandbox) -> None:
    shutil.rmtree(built.root / "artifacts" / "r")

    assert built.built().restored == ["a", "files", "last"]


@pytest.mark.parametrize("target", ["/etc", "nowhere", "../.store", "../../other/artifacts/.store/{key}/out", "{key}"])
def test_a_link_that_leads_elsewhere_is_put_right(built: Sandbox, target: str) -> None:
    right = built.path("files").readlink()
    built.path("files").unlink()
    built.path("files").symlink_to(target.format(key=right.parts[-2]))

    assert built.built().restored == ["files"]
    assert built.path("files").readlink() == right


def test_a_link_to_the_artifact_of_another_target_is_put_right(built: Sandbox) -> None:
    right = built.path("files").readlink()
    built.path("files").unlink()
    built.path("files").symlink_to(built.path("a").readlink())

    assert built.built().restored == ["files"]
    assert built.path("files").readlink() == right


# --- what surrounds the artifacts -------------------------------------------------------------------------------


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scribble(path: Path) -> None:
    """Leave the header and the schema, destroy the rest."""
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * len(data[4096:])
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def lie(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update entries set digest = replace(digest, 'a', 'b')")
    database.close()


def odd_types(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update entries set digest = 7, size = 'many', checksum = null")
    database.close()


def another_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table entries (x)")
    database.close()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [garbage, empty, scribble, cut, lie, odd_types, another_schema, folder], ids=lambda d: d.__name__
)
def test_a_damaged_stat_cache_costs_time_and_nothing_else(built: Sandbox, damage: Callable[[Path], None]) -> None:
    for suffix in ("-wal", "-shm"):
        (built.store / f"digests.sqlite{suffix}").unlink(missing_ok=True)
    damage(built.store / "digests.sqlite")

    assert built.built().fresh == ["a", "files", "last"]
    assert built.run("verify").code == 0
    built.data("a.txt", "ho")
    built.built()
    assert built.value("last") == "ho1ho2ho"
    assert built.built().built == []


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_damaged_journal_of_the_stat_cache_costs_nothing_else(built: Sandbox, suffix: str) -> None:
    (built.store / f"digests.sqlite{suffix}").write_bytes(b"\xff" * 40_000)

    assert built.built().fresh == ["a", "files", "last"]


def test_half_a_published_folder_is_not_taken_for_an_artifact(built: Sandbox) -> None:
    key = built.key("files")
    built.run("clean", "files")
    (built.store / key / "out").mkdir(parents=True)
    (built.store / key / "out" / "value.txt").write_text("half")

    assert built.built().built == ["files"]
    assert built.value("last") == "hi1hi2hi"


def test_locks_of_the_dead_hold_nobody_up(built: Sandbox) -> None:
    (built.store / "locks").mkdir(exist_ok=True)
    key = built.key("files")
    built.run("clean", "files")
    (built.store / "locks" / key).write_text("a process that died")

    assert built.built().built == ["files"]
    assert built.run("gc").code == 0
    assert built.leftovers() == []


@pytest.mark.parametrize("name", ["tmp", "locks", "names", "failed"])
def test_the_stores_own_folders_may_be_deleted(built: Sandbox, name: str) -> None:
    shutil.rmtree(built.store / name, ignore_errors=True)

    assert built.built().fresh == ["a", "files", "last"]
    built.data("a.txt", "ho")
    assert built.built().built == ["a", "files", "last"]


def test_damaged_reasons_are_no_obstacle(built: Sandbox) -> None:
    for path in (built.store / "names").rglob("*.jsonl"):
        path.write_bytes(b"\xff\x00{\n" + path.read_bytes()[:-5])

    assert built.run("why", "last").code == 0
    assert built.built().fresh == ["a", "files", "last"]


def test_a_store_without_anything_in_it_is_a_cold_start(built: Sandbox) -> None:
    digests = {row["target"]: row["digest"] for row in built.run("status", "--json").json}
    shutil.rmtree(built.store)

    ran = built.built()

    assert ran.digests == digests


def test_verify_tells_of_every_damaged_artifact_at_once(built: Sandbox) -> None:
    flip(built)
    write(built.path("a") / "value.txt", b"ho")

    assert set(built.run("verify", "--json").json["damaged"]) == {"r:a", "r:files"}
