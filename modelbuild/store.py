"""Artifacts by key: published by one rename with their record, checked before each use, linked to by name.

artifacts/<recipe>/<target>          -> .store/<key>/out
artifacts/.store/<key>/out           the artifact, read-only
artifacts/.store/<key>/record.json   what it is and how it was made
artifacts/.store/<key>/log           what the build said
artifacts/.store/names/...           why each target was last built
artifacts/.store/failed/<key>        the folder, job and log of a build that failed
artifacts/.store/tmp, locks          what is being made, and by whom
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat as modes
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from modelbuild import digest, lock
from modelbuild.digest import StatCache
from modelbuild.errors import problem
from modelbuild.names import KEY, Names
from modelbuild.record import File, Record, seal, unseal

SETTLE_BYTES = 8 << 20
"""From this size on an artifact waits out the timestamp grain before it is hashed, to be hashed only once."""
CACHE = "digests.sqlite"
FOLDERS = ("tmp", "locks", "failed", "names", "pins")
"""Of the store beside the artifacts."""


class Damage(msgspec.Struct, frozen=True):
    """What is wrong with an artifact in the store."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"`{self.path}` {self.what}"


class Store:
    """The store under an `artifacts` folder."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.root = artifacts / ".store"
        self._top = str(self.root)
        self.names = Names(artifacts, self.root)
        self._cache: StatCache | None = None

    @property
    def cache(self) -> StatCache:
        """Opened on first use, so that reading a store leaves nothing behind where none is."""
        if self._cache is None:
            usable = self.root.is_dir() and os.access(self.root, os.W_OK)
            self._cache = StatCache(self.root / CACHE if usable else None)
        return self._cache

    def close(self) -> None:
        """Write the stat cache."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def prepare(self) -> None:
        """Make the store's folders; a `ProblemError` where that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._refuse_links()
            probe = self.root / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise problem(
                "the artifact store cannot be written",
                folder=self.root,
                cause=e.strerror or e,
                hint="make the folder writable, or free some space with `modelbuild gc`",
            ) from None
        self.cache.attach(self.root / CACHE)

    def _refuse_links(self) -> None:
        """What is removed from the store's own folders must not be somebody else's."""
        for name in FOLDERS:
            folder = self.root / name
            if folder.is_symlink():
                title = "a link is in the place of a folder of the store, and is not followed"
                raise problem(title, path=folder, leads_to=os.path.realpath(folder), hint="remove the link")

    def out(self, key: str) -> Path:
        """The folder of an artifact's files."""
        return self.root / key / "out"

    def log_path(self, key: str) -> Path:
        return self.root / key / "log"

    def record(self, key: str) -> Record | None:
        """The record under `key`; None when there is none or it was damaged."""
        try:
            with open(f"{self._top}/{key}/record.json", "rb", buffering=0) as file:  # noqa: PTH123 - the hot path
                data = file.read()
        except OSError:
            return None
        record = unseal(data)
        return record if record and record.key == key else None

    def all_keys(self) -> Iterator[str]:
        """Every key with a folder in the store, damaged ones included."""
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(n for n in os.listdir(self.root) if KEY.fullmatch(n))  # noqa: PTH208

    def damage(self, record: Record, *, read: bool = False) -> tuple[Damage, ...]:
        """What is wrong with an artifact's files: by stat, by content where the stat is new or `read` asks for it."""
        out = f"{self._top}/{record.key}/out"
        expected = {f.path: f for f in record.files}
        if not read and self._is_intact(out, record, expected):
            return ()
        found: list[Damage] = []
        seen = set()
        for path, info in _walk(out):
            if info is None:
                if path not in record.folders:
                    found.append(Damage(path, "is an extra folder"))
                seen.add(path)
                continue
            file = expected.get(path)
            if file is None:
                found.append(Damage(path, "is not part of the artifact"))
                continue
            seen.add(path)
            what = self._wrong(f"{out}/{path}", info, file, read)
            if what:
                found.append(Damage(path, what))
        found += [Damage(path, "is missing") for path in (*expected, *record.folders) if path not in seen]
        return tuple(found)

    def _is_intact(self, out: str, record: Record, expected: Mapping[str, File]) -> bool:
        """Whether a flat artifact is as recorded by its files' stat: the usual case, asked of thousands."""
        try:
            if record.folders or expected.keys() != set(os.listdir(out)):  # noqa: PTH208
                return False
            for name, file in expected.items():
                info = os.lstat(f"{out}/{name}")
                if not (modes.S_ISREG(info.st_mode) and info.st_size == file.size):
                    return False
                if bool(info.st_mode & 0o100) != file.executable or self.cache.known(info) != file.digest:
                    return False
        except OSError:
            return False
        return True

    def _wrong(self, path: str, info: os.stat_result, file: File, read: bool) -> str | None:
        if not modes.S_ISREG(info.st_mode):
            return "is no regular file"
        if info.st_size != file.size:
            return f"has {info.st_size:,} bytes instead of {file.size:,}"
        if bool(info.st_mode & 0o100) != file.executable:
            return "has another mode"
        try:
            actual = digest.of_file(path) if read else self.cache.digest(path, info)
        except OSError as e:
            return f"cannot be read: {(e.strerror or str(e)).lower()}"
        if actual == file.digest:
            return None
        self.cache.forget(info)
        return "has other content"

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Held by every build: `gc` waits for it."""
        return lock.shared(self.root / "builds.lock")

    def idle(self, waiting: lock.Waiting) -> contextlib.AbstractContextManager[None]:
        """Held by what removes artifacts: no build runs meanwhile. `waiting` is called when one has to end first."""
        self._refuse_links()
        return lock.sole(self.root / "builds.lock", waiting)

    def lock_path(self, key: str) -> Path:
        return self.root / "locks" / key

    def workplace(self, key: str) -> Path:
        """A new empty folder for one attempt at building `key`."""
        path = self.root / "tmp" / f"{key}.{os.getpid()}.{os.urandom(4).hex()}"
        path.mkdir(parents=True)
        return path

    def scan(self, out: Path, linked: Collection[str]) -> tuple[tuple[File, ...], tuple[str, ...]]:
        """The files (made read-only and hashed) and empty folders of a finished `out`.

        A file of `linked` shares its inode with a file of the store, whose digest is known: it is not read again.
        """
        if out.is_symlink() or not out.is_dir():
            raise problem("the build removed the folder for its output")
        entries = list(_walk(out))
        for path, info in entries:
            if not _is_text(path):
                raise problem("the build made a file whose name is not UTF-8", path=repr(path))
            if info is not None and not modes.S_ISREG(info.st_mode):
                raise problem("the build made something that is no regular file", path=path)
            mode = 0o555 if info is not None and info.st_mode & 0o100 else 0o444
            if info is not None and modes.S_IMODE(info.st_mode) != mode:
                (out / path).chmod(mode)
        files = sorted(path for path, info in entries if info is not None)
        if sum(info.st_size for _, info in entries if info is not None) >= SETTLE_BYTES:
            time.sleep(digest.FINE_GRAIN_NS / 1e9)
        return tuple(self._file(out, path, path in linked) for path in files), tuple(
            path for path, info in entries if info is None
        )

    def _file(self, out: Path, path: str, linked: bool) -> File:
        info = (out / path).stat()
        content = (self.cache.relinked(info) if linked else None) or self.cache.digest(out / path, info)
        return File(path, info.st_size, content, bool(info.st_mode & 0o100))

    def publish(self, place: Path, record: Record) -> None:
        """Make `place` (with `out` and `log`) the artifact of its record's key, in one rename."""
        (place / "record.json").write_bytes(seal(record))
        final = self.root / record.key
        self.discard(final)
        place.rename(final)
        self.cache.save()

    def keep_failed(self, key: str, place: Path) -> Path:
        """Move the folder of a failed build aside, in the place of an earlier failure; its new path."""
        kept = self.root / "failed" / key
        kept.parent.mkdir(exist_ok=True)
        self.discard(kept)
        place.rename(kept)
        return kept

    def discard(self, path: Path) -> None:
        """Remove a folder of the store so that no one ever sees half of it."""
        if not os.path.lexists(path):
            return
        grave = self.root / "tmp" / f"old.{os.getpid()}.{os.urandom(4).hex()}"
        grave.parent.mkdir(exist_ok=True)
        path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(top: Path | str) -> Iterator[tuple[str, os.stat_result | None]]:
    """(relative path, stat) of all below `top` but folders, links not followed; empty folders with None."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(f"{top}/{folder}") as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not entries and folder:
            yield folder, None
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                yield path, entry.stat(follow_symlinks=False)
