"""Content digests, and when the stat cache may be believed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from modelbuild.digest import BLOCK, FINE_GRAIN_NS, StatCache, of_bytes, of_file, of_tree


def settle() -> None:
    """Let the grain of the file system's timestamps pass."""
    time.sleep(1.5 * FINE_GRAIN_NS / 1e9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that has been at rest for a while."""
    path = tmp_path / "file"
    path.write_text("one")
    settle()
    return path


@pytest.fixture
def cache(tmp_path: Path) -> StatCache:
    return StatCache(tmp_path / "digests.sqlite")


def reads(cache: StatCache, path: Path) -> bool:
    """Whether asking for a file's digest reads the file; the digest must be right anyway."""
    before = cache.read_bytes
    assert cache.digest(path) == of_bytes(path.read_bytes())
    return cache.read_bytes > before


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)

    assert of_file(tmp_path / "f") == of_bytes(data) == xxhash.xxh3_128(data).hexdigest()


@given(st.dictionaries(st.text(min_size=1), st.text("0123456789abcdef", min_size=32, max_size=32)))
def test_a_tree_has_one_digest_in_whatever_order(entries: dict[str, str]) -> None:
    assert of_tree(entries.items()) == of_tree(reversed(entries.items()))


@pytest.mark.parametrize(
    "other", [[("a", "1")], [("a", "1"), ("b", "3")], [("b", "1"), ("a", "2")], [("a", "1"), ("c", "2")], []]
)
def test_another_tree_has_another_digest(other: list[tuple[str, str]]) -> None:
    assert of_tree(other) != of_tree([("a", "1"), ("b", "2")])


def test_a_file_name_that_is_no_utf8_has_a_digest() -> None:
    assert of_tree([(os.fsdecode(b"\xff"), "1")]) != of_tree([(os.fsdecode(b"\xfe"), "1")])


def test_an_unchanged_file_is_read_once(cache: StatCache, file: Path) -> None:
    assert reads(cache, file)
    assert not reads(cache, file)


def test_what_was_learnt_serves_the_next_process(cache: StatCache, file: Path, tmp_path: Path) -> None:
    cache.digest(file)
    cache.close()

    assert not reads(StatCache(tmp_path / "digests.sqlite"), file)


def test_a_touched_file_is_read_once_more_and_then_known(cache: StatCache, file: Path) -> None:
    cache.digest(file)
    os.utime(file)
    settle()

    assert reads(cache, file)
    assert not reads(cache, file)


def test_a_change_of_the_same_size_with_the_time_restored_is_seen(cache: StatCache, file: Path) -> None:
    cache.digest(file)
    before = file.stat()
    file.write_text("eno")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert reads(cache, file)


def test_another_file_of_the_same_size_and_time_renamed_over_it_is_seen(cache: StatCache, file: Path) -> None:
    cache.digest(file)
    before = file.stat()
    other = file.with_name("other")
    other.write_text("eno")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)

    assert reads(cache, file)


def test_a_file_that_just_changed_is_not_remembered(cache: StatCache, file: Path) -> None:
    """Git's racy rule: a second change within the same tick of the clock would leave the same stamps."""
    file.write_text("two")
    cache.digest(file)

    assert reads(cache, file)


def test_quick_changes_are_never_missed(cache: StatCache, file: Path) -> None:
    for text in ("aaa", "bbb", "ccc") * 200:
        file.write_text(text)
        assert cache.digest(file) == of_bytes(text.encode())


def test_a_whole_second_for_a_timestamp_means_a_coarse_clock(cache: StatCache, file: Path) -> None:
    """A file system without fractions of a second gives one stamp to all changes of two seconds."""
    stat = file.stat()
    coarse = os.stat_result(
        tuple(stat),
        {"st_ctime_ns": time.time_ns() // 10**9 * 10**9, "st_mtime_ns": stat.st_mtime_ns, "st_atime_ns": 0},
    )
    cache._remember(coarse, "0" * 32, time.time_ns())

    assert cache.known(coarse) is None


def test_a_hard_link_shares_what_is_known_of_the_file(cache: StatCache, file: Path) -> None:
    known = cache.digest(file)
    link = file.with_name("link")
    link.hardlink_to(file)
    settle()

    assert cache.relinked(link.stat()) == known
    assert not reads(cache, link)
    assert not reads(cache, file)


def test_a_link_of_a_file_that_changed_in_size_or_time_is_not_known(cache: StatCache, file: Path) -> None:
    cache.digest(file)
    file.with_name("link").hardlink_to(file)
    os.utime(file)

    assert cache.relinked(file.stat()) is None


def test_a_symbolic_link_has_the_digest_of_what_it_leads_to(cache: StatCache, file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)

    assert cache.digest(link) == cache.digest(file)


def test_what_is_forgotten_is_read_again(cache: StatCache, file: Path, tmp_path: Path) -> None:
    cache.digest(file)
    cache.save()
    cache.forget(file.stat())
    assert cache.known(file.stat()) is None
    cache.close()

    assert reads(StatCache(tmp_path / "digests.sqlite"), file)


@pytest.mark.parametrize("content", [b"", b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_replaced(tmp_path: Path, file: Path, content: bytes) -> None:
    path = tmp_path / "digests.sqlite"
    path.write_bytes(content)
    cache = StatCache(path)
    assert reads(cache, file)
    cache.close()

    assert not reads(StatCache(path), file)


@pytest.mark.parametrize("column", ["digest", "size", "mtime", "ctime", "checksum"])
def test_a_damaged_row_is_unknown(tmp_path: Path, file: Path, column: str) -> None:
    path = tmp_path / "digests.sqlite"
    cache = StatCache(path)
    cache.digest(file)
    cache.close()
    with sqlite3.connect(path) as database:
        database.execute(f"update entries set {column} = '00'")
    database.close()

    assert reads(StatCache(path), file)


def test_a_database_that_breaks_while_in_use_is_given_up(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "digests.sqlite"
    StatCache(path).close()
    with sqlite3.connect(path) as database:
        database.execute("drop table entries")
        database.execute("create view entries as select 1 as device, 2 as inode, x.size from x")
    database.close()
    cache = StatCache(path)

    assert reads(cache, file)
    assert not reads(cache, file)
    cache.close()


@pytest.mark.parametrize("path", [None, Path("/proc/no/such/folder/digests.sqlite"), Path("/")])
def test_without_a_file_it_serves_from_memory(file: Path, path: Path | None) -> None:
    cache = StatCache(path)

    assert reads(cache, file)
    assert not reads(cache, file)
    cache.close()


def test_what_was_learnt_before_there_was_a_file_is_kept_in_it(tmp_path: Path, file: Path) -> None:
    cache = StatCache(None)
    cache.digest(file)
    cache.attach(tmp_path / "late.sqlite")
    cache.close()

    assert not reads(StatCache(tmp_path / "late.sqlite"), file)


def test_two_at_once_do_not_hold_each_other_up(tmp_path: Path) -> None:
    files = [tmp_path / str(n) for n in range(20)]
    for path in files:
        path.write_text(path.name)
    settle()
    caches = [StatCache(tmp_path / "digests.sqlite") for _ in range(2)]

    started = time.monotonic()
    for path in files:
        for cache in caches:
            cache.digest(path)
            cache.save()
    for cache in caches:
        cache.close()

    assert time.monotonic() - started < 2
    assert not any(reads(StatCache(tmp_path / "digests.sqlite"), path) for path in files)


def test_threads_may_share_it(cache: StatCache, tmp_path: Path) -> None:
    files = [tmp_path / str(n) for n in range(50)]
    for path in files:
        path.write_text(path.name)
    settle()
    wrong: list[Path] = []

    def ask() -> None:
        wrong.extend(p for p in files if cache.digest(p) != of_bytes(p.name.encode()))
        cache.save()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_memory_stays_bounded_for_large_files(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(64 << 20)
    tracemalloc.start()
    of_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * BLOCK
