"""Content digests (xxh3-128) of files and trees, and the stat cache that avoids reading unchanged files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import xxhash

BLOCK = 1 << 20
FINE_GRAIN_NS = 50_000_000
"""Longest tick of a file system with nanosecond timestamps: the kernel stamps files from a clock of at most 10 ms."""
COARSE_GRAIN_NS = 2_000_000_000
"""Timestamp grain assumed of other file systems (FAT has 2 s)."""


def of_bytes(data: bytes) -> str:
    """The xxh3-128 of `data`, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_file(path: Path | str) -> str:
    """The xxh3-128 of a file's bytes, read once in blocks: a file cut short meanwhile is no crash, as with a map."""
    state = xxhash.xxh3_128()
    block = bytearray(BLOCK)
    view = memoryview(block)
    with Path(path).open("rb", buffering=0) as file:
        while read := file.readinto(block):
            state.update(view[:read])
    return state.hexdigest()


def of_tree(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of a tree from its files' (relative path, digest) pairs, in whatever order they come."""
    lines = sorted(f"{digest} {path}\n" for path, digest in entries)
    return of_bytes("".join(lines).encode("utf-8", "surrogateescape"))


class StatCache:
    """Digests of files by (device, inode), trusted while size, mtime and ctime stand.

    ctime tells what mtime can hide (a rename over the file, a restored mtime). An entry whose file had changed within
    the timestamp grain of being hashed is not kept: a later write could leave the same stamps (git's racy rule).
    A cache that cannot be read or written costs time and nothing else: `path` None, a damaged file and a read-only
    folder all mean an empty cache in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.read_bytes = 0
        self._lock = threading.Lock()
        self._database = _open(path)

    def digest(self, path: Path | str, stat: os.stat_result | None = None) -> str:
        """The content digest of a file (links followed), from the cache when its stat is as it was."""
        stat = stat or os.stat(path)  # noqa: PTH116 - os.stat takes str and Path alike, and this is the hot path
        known = self.known(stat)
        if known is not None:
            return known
        while True:
            found = of_file(path)
            self.read_bytes += stat.st_size
            after = os.stat(path)  # noqa: PTH116
            if _stamps(after) == _stamps(stat):
                self.remember(stat, found)
                return found
            stat = after

    def known(self, stat: os.stat_result) -> str | None:
        """The digest on record for a file in this state, or None."""
        row = self._row(stat)
        return row[3] if row and row[:3] == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) else None

    def relinked(self, stat: os.stat_result) -> str | None:
        """The digest of a file that had a hard link added since it was hashed, which moves ctime and nothing else."""
        row = self._row(stat)
        if row is None or row[:2] != (stat.st_size, stat.st_mtime_ns):
            return None
        self.remember(stat, row[3])
        return row[3]

    def _row(self, stat: os.stat_result) -> tuple[int, int, int, str] | None:
        with self._lock:
            row: tuple[int, int, int, str] | None = self._database.execute(
                "select size, mtime, ctime, digest from files where device = ? and inode = ?",
                (_signed(stat.st_dev), _signed(stat.st_ino)),
            ).fetchone()
        return row

    def remember(self, stat: os.stat_result, digest: str) -> None:
        """Keep the digest of a file whose state was `stat` before and after it was read."""
        if time.time_ns() - stat.st_ctime_ns <= _grain(stat):
            return
        row = (_signed(stat.st_dev), _signed(stat.st_ino), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest)
        with self._lock:
            try:
                self._database.execute("insert or replace into files values (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.Error:
                self._database = _memory()

    def forget(self, stat: os.stat_result) -> None:
        """Trust this file's stat no more: its content was found to be something else."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._database.execute(
                "delete from files where device = ? and inode = ?", (_signed(stat.st_dev), _signed(stat.st_ino))
            )

    def close(self) -> None:
        """Write what was learnt."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._database.commit()
            self._database.close()


def _stamps(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _grain(stat: os.stat_result) -> int:
    """How long a file system may give one timestamp to two changes, told by whether ctime has digits below 1 ms."""
    return FINE_GRAIN_NS if stat.st_ctime_ns % 1_000_000 else COARSE_GRAIN_NS


def _signed(number: int) -> int:
    """SQLite's integers are signed; devices and inodes are not."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _open(path: Path | None) -> sqlite3.Connection:
    if path is None:
        return _memory()
    try:
        return _connect(str(path))
    except sqlite3.OperationalError:
        return _memory()
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        try:
            return _connect(str(path))
        except sqlite3.Error:
            return _memory()


def _memory() -> sqlite3.Connection:
    return _connect(":memory:")


def _connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=20, check_same_thread=False)
    try:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        database.execute(
            "create table if not exists files (device integer, inode integer, size integer, mtime integer,"
            " ctime integer, digest text, primary key (device, inode)) without rowid"
        )
        database.execute("select size from files limit 1").fetchone()
    except sqlite3.Error:
        database.close()
        raise
    return database
