"""Content digests (xxh3-128) of files and trees, and the stat cache that avoids reading unchanged files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import xxhash

BLOCK = 1 << 20
FINE_GRAIN_NS = 50_000_000
"""Longest tick of a file system with nanosecond timestamps: the kernel stamps files from a clock of at most 10 ms."""
COARSE_GRAIN_NS = 2_000_000_000
"""Timestamp grain assumed of other file systems (FAT has 2 s)."""


def of_bytes(data: bytes | memoryview) -> str:
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
    lines = sorted(f"{digest} {_one_line(path)}\n" for path, digest in entries)
    return of_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def _one_line(path: str) -> str:
    r"""A path whose newlines cannot be taken for the end of its line, as `sha256sum` escapes them."""
    return path.replace("\\", "\\\\").replace("\n", "\\n") if "\n" in path or "\\" in path else path


class StatCache:
    """Digests of files by (device, inode), trusted while size, mtime and ctime stand.

    ctime tells what mtime can hide (a rename over the file, a restored mtime). An entry whose file had changed within
    the timestamp grain of being hashed is not kept: a later write could leave the same stamps (git's racy rule).
    A cache that cannot be read or written costs time and nothing else: without a path, with a damaged file and in a
    read-only folder, what is learnt stays in memory. Each row carries a checksum, so that a damaged one is unknown.
    """

    def __init__(self, path: Path | None) -> None:
        self.read_bytes = 0
        self._lock = threading.Lock()
        self._learnt: dict[tuple[int, int], Row | None] = {}
        """What `save` is to write, None for what it is to remove."""
        self._all: dict[tuple[int, int], tuple[int, int, int, str, int | None]] | None = None
        """Every row by file, once `load` has read them."""
        self._path = path
        self._database = _open(path) if path else None

    def attach(self, path: Path) -> None:
        """Keep in the file at `path` what a cache without one has learnt."""
        with self._lock:
            if self._path is None:
                self._path, self._database = path, _open(path)

    def digest(self, path: Path | str, stat: os.stat_result | None = None) -> str:
        """The content digest of a file (links followed), from the cache when its stat is as it was."""
        stat = stat or os.stat(path)  # noqa: PTH116 - os.stat takes str and Path alike, and this is the hot path
        known = self.known(stat)
        if known is not None:
            return known
        while True:
            started = time.time_ns()
            found = of_file(path)
            self.read_bytes += stat.st_size
            after = os.stat(path)  # noqa: PTH116
            if _stamps(after) == _stamps(stat):
                self._remember(stat, found, started)
                return found
            stat = after

    def known(self, stat: os.stat_result) -> str | None:
        """The digest on record for a file in this state, or None."""
        row = self._row(stat)
        return row.digest if row and row.stamps == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) else None

    def relinked(self, stat: os.stat_result) -> str | None:
        """The digest of a file that had a hard link added since it was hashed, which moves ctime and nothing else."""
        row = self._row(stat)
        if row is None or row.stamps[:2] != (stat.st_size, stat.st_mtime_ns):
            return None
        self._remember(stat, row.digest, time.time_ns())
        return row.digest

    def _row(self, stat: os.stat_result) -> Row | None:
        file = _signed(stat.st_dev), _signed(stat.st_ino)
        everything = self._all
        if everything is not None and not self._learnt:
            found = everything.get(file)
        else:
            with self._lock:
                if file in self._learnt or self._database is None:
                    return self._learnt.get(file)
                if self._all is not None:
                    found = self._all.get(file)
                else:
                    try:
                        found = self._database.execute(SELECT, file).fetchone()
                    except sqlite3.Error as e:
                        self._give_up(e)
                        return None
        if found is None:
            return None
        size, mtime, ctime, digest, checksum = found
        row = Row((size, mtime, ctime), digest)
        return row if checksum is not None and checksum == _checksum(file, row) else None

    def _remember(self, stat: os.stat_result, digest: str, seen_ns: int) -> None:
        """Keep the digest of a file that was in the state `stat` at `seen_ns`, when it was opened, and ever since."""
        if seen_ns - stat.st_ctime_ns <= _grain(stat):
            return
        row = Row((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), digest)
        with self._lock:
            self._learnt[_signed(stat.st_dev), _signed(stat.st_ino)] = row

    def load(self) -> None:
        """Read every row at once: cheaper than one by one for whoever is about to ask for thousands."""
        with self._lock:
            if self._database is None or self._all is not None:
                return
            try:
                rows = self._database.execute(SELECT_ALL).fetchall()
            except sqlite3.Error as e:
                self._give_up(e)
            else:
                self._all = {row[:2]: row[2:] for row in rows}

    def forget(self, stat: os.stat_result) -> None:
        """Trust this file's stat no more: its content was found to be something else."""
        with self._lock:
            self._learnt[_signed(stat.st_dev), _signed(stat.st_ino)] = None

    def save(self) -> None:
        """Write what was learnt: one short transaction, so that no other builder waits for this one."""
        with self._lock:
            if not self._learnt or self._database is None:
                return
            kept = [(*f, *row.stamps, row.digest, _checksum(f, row)) for f, row in self._learnt.items() if row]
            gone = [f for f, row in self._learnt.items() if row is None]
            try:
                with self._database:
                    self._database.executemany(INSERT, kept)
                    self._database.executemany(DELETE, gone)
            except sqlite3.Error as e:
                self._give_up(e)
            else:
                self._learnt.clear()
                self._all = None

    def close(self) -> None:
        """Write what was learnt and let go of the file."""
        self.save()
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on in memory; a damaged file is removed, so that the next run starts a new one."""
        assert self._database is not None
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        self._database = None
        if self._path and not isinstance(error, sqlite3.OperationalError):
            _remove(self._path)


class Row(NamedTuple):
    """What is known of a file: (size, mtime, ctime) and its digest."""

    stamps: tuple[int, int, int]
    digest: str


def _checksum(file: tuple[int, int], row: Row) -> int | None:
    """Of a row's values, to tell one that was damaged; None for values that no row can have."""
    try:
        packed = PACKED.pack(*file, *row.stamps) + row.digest.encode()
    except (struct.error, AttributeError, UnicodeError):
        return None
    return _signed(xxhash.xxh3_64_intdigest(packed))


def _stamps(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _grain(stat: os.stat_result) -> int:
    """How long a file system may give one timestamp to two changes, told by whether ctime has digits below 1 ms."""
    return FINE_GRAIN_NS if stat.st_ctime_ns % 1_000_000 else COARSE_GRAIN_NS


def _signed(number: int) -> int:
    """SQLite's integers are signed; devices and inodes are not."""
    return number - (1 << 64) if number >= 1 << 63 else number


PACKED = struct.Struct("<5q")
SELECT_ALL = "select device, inode, size, mtime, ctime, digest, checksum from entries"
SELECT = "select size, mtime, ctime, digest, checksum from entries where device = ? and inode = ?"
INSERT = "insert or replace into entries values (?, ?, ?, ?, ?, ?, ?)"
DELETE = "delete from entries where device = ? and inode = ?"
BUSY_S = 5.0
"""How long a transaction waits for another process's, which are all short."""


def _open(path: Path) -> sqlite3.Connection | None:
    """The database at `path`, a new one in the place of a damaged one; None where there cannot be one."""
    for _ in range(2):
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError:
            _remove(path)
    return None


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            path.with_name(path.name + suffix).unlink()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        database.execute(
            "create table if not exists entries (device integer, inode integer, size integer, mtime integer,"
            " ctime integer, digest text, checksum integer, primary key (device, inode)) without rowid"
        )
        database.execute(SELECT, (0, 0)).fetchone()
    except sqlite3.Error:
        database.close()
        raise
    return database
