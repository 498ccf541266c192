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
import re
import secrets
import shutil
import stat as modes
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from modelbuild import digest, lock
from modelbuild.digest import StatCache
from modelbuild.errors import problem
from modelbuild.manifest import Manifest
from modelbuild.manifest import key as key_of

KEY = re.compile(r"[0-9a-f]{32}")
SETTLE_BYTES = 8 << 20
"""From this size on an artifact waits out the timestamp grain before it is hashed, to be hashed only once."""
KEPT_REASONS = 20


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of an artifact: relative path, bytes, content digest, whether it may be executed."""

    path: str
    size: int
    digest: str
    executable: bool = False


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A metric that the build told."""

    value: float
    unit: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is known of an artifact. `digest` is its content's; times in seconds, `built_at` since the epoch."""

    manifest: Manifest
    digest: str
    files: tuple[File, ...]
    folders: tuple[str, ...] = ()
    """Folders with nothing in them, which some formats need."""
    metrics: dict[str, Figure] = {}
    log: tuple[str, ...] = ()
    built_at: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def key(self) -> str:
        return key_of(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


class Reasons(msgspec.Struct, frozen=True):
    """Why a target was built or restored, at a time (seconds since the epoch)."""

    key: str
    action: str
    at: float
    reasons: tuple[str, ...]


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
        self._cache: StatCache | None = None

    @property
    def cache(self) -> StatCache:
        """Opened on first use, so that reading a store leaves nothing behind where none is."""
        if self._cache is None:
            usable = self.root.is_dir() and os.access(self.root, os.W_OK)
            self._cache = StatCache(self.root / "digests.sqlite" if usable else None)
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
            probe = self.root / f".probe-{os.getpid()}-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise problem(
                "the artifact store cannot be written",
                folder=self.root,
                cause=e.strerror or e,
                hint="make the folder writable, or free some space with `modelbuild gc`",
            ) from None

    # ---- reading

    def out(self, key: str) -> Path:
        """The folder of an artifact's files."""
        return self.root / key / "out"

    def log_path(self, key: str) -> Path:
        return self.root / key / "log"

    def record(self, key: str) -> Record | None:
        """The record under `key`; None when there is none or it was damaged."""
        try:
            data = (self.root / key / "record.json").read_bytes()
        except OSError:
            return None
        seal, _, body = data.partition(b"\n")
        if seal.decode("ascii", "replace") != digest.of_bytes(body):
            return None
        try:
            record = msgspec.json.decode(body, type=Record)
        except msgspec.MsgspecError:
            return None
        return record if record.key == key else None

    def keys(self) -> Iterator[str]:
        """Every key with a folder in the store, damaged ones included."""
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(n for n in os.listdir(self.root) if KEY.fullmatch(n))  # noqa: PTH208

    def damage(self, record: Record, *, read: bool = False) -> tuple[Damage, ...]:
        """What is wrong with an artifact's files: by stat, by content where the stat is new or `read` asks for it."""
        out = self.out(record.key)
        expected = {f.path: f for f in record.files}
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
            what = self._wrong(out / path, info, file, read)
            if what:
                found.append(Damage(path, what))
        found += [Damage(path, "is missing") for path in (*expected, *record.folders) if path not in seen]
        return tuple(found)

    def _wrong(self, path: Path, info: os.stat_result, file: File, read: bool) -> str | None:
        if not modes.S_ISREG(info.st_mode):
            return "is no regular file"
        if info.st_size != file.size:
            return f"has {info.st_size:,} bytes instead of {file.size:,}"
        if bool(info.st_mode & 0o100) != file.executable:
            return "has another mode"
        try:
            actual = digest.of_file(path) if read else self.cache.digest(path, info)
        except OSError as e:
            return f"cannot be read: {e.strerror}"
        return None if actual == file.digest else "has other content"

    # ---- names

    def name_path(self, recipe: str, target: str) -> Path:
        """The link by which users find a target's artifact."""
        return self.artifacts / recipe / target

    def named(self, recipe: str, target: str) -> str | None:
        """The key that a target's name links to, or None."""
        try:
            parts = Path(os.readlink(self.name_path(recipe, target))).parts  # noqa: PTH115 - no Path to return
        except OSError:
            return None
        return parts[-2] if len(parts) >= 2 and KEY.fullmatch(parts[-2]) else None

    def name(self, recipe: str, target: str, key: str) -> None:
        """Make a target's name link to `key`, in one step."""
        link = self.name_path(recipe, target)
        link.parent.mkdir(parents=True, exist_ok=True)
        aside = link.parent / f".{secrets.token_hex(8)}"
        aside.symlink_to(Path("..") / self.root.name / key / "out")
        try:
            aside.replace(link)
        except OSError as e:
            aside.unlink()
            raise problem(
                "something that is not ours is in the place of an artifact's link",
                path=link,
                cause=e.strerror or e,
                hint="move it away",
            ) from None

    def names(self) -> Iterator[tuple[str, str]]:
        """Every (recipe, target) that has a link."""
        for folder in sorted(self.artifacts.glob("*/")):
            if folder.name != self.root.name and not folder.is_symlink():
                yield from ((folder.name, p.name) for p in sorted(folder.iterdir()) if p.is_symlink())

    def unname(self, recipe: str, target: str) -> None:
        """Remove a target's link, and its folder when it was the last."""
        path = self.name_path(recipe, target)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def reasons(self, recipe: str, target: str) -> tuple[Reasons, ...]:
        """Why a target was built, oldest first."""
        try:
            lines = self._reasons_path(recipe, target).read_bytes().splitlines()
        except OSError:
            return ()
        found = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(line, type=Reasons))
        return tuple(found)

    def add_reasons(self, recipe: str, target: str, reasons: Reasons) -> None:
        """Remember why a target was built; only the latest few are kept."""
        kept = (*self.reasons(recipe, target), reasons)[-KEPT_REASONS:]
        path = self._reasons_path(recipe, target)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, b"".join(msgspec.json.encode(r) + b"\n" for r in kept))

    def _reasons_path(self, recipe: str, target: str) -> Path:
        return self.root / "names" / recipe / f"{target}.jsonl"

    # ---- building

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Held by every build: `gc` waits for it."""
        return lock.shared(self.root / "builds.lock")

    def lock_path(self, key: str) -> Path:
        return self.root / "locks" / key

    def workplace(self, key: str) -> Path:
        """A new empty folder for one attempt at building `key`."""
        path = self.root / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
        path.mkdir(parents=True)
        return path

    def scan(self, out: Path, linked: Mapping[str, str]) -> tuple[tuple[File, ...], tuple[str, ...]]:
        """The files (made read-only and hashed) and empty folders of a finished `out`.

        `linked` gives the digest of files whose content is known because they were linked from an artifact.
        """
        entries = list(_walk(out))
        for path, info in entries:
            if info is not None and not modes.S_ISREG(info.st_mode):
                raise problem("the build made something that is no regular file", path=path)
            mode = 0o555 if info is not None and info.st_mode & 0o100 else 0o444
            if info is not None and modes.S_IMODE(info.st_mode) != mode:
                (out / path).chmod(mode)
        files = [path for path, info in entries if info is not None]
        if sum(info.st_size for _, info in entries if info is not None) >= SETTLE_BYTES:
            time.sleep(digest.FINE_GRAIN_NS / 1e9)
        return tuple(self._file(out, path, linked.get(path)) for path in files), tuple(
            path for path, info in entries if info is None
        )

    def _file(self, out: Path, path: str, known: str | None) -> File:
        info = (out / path).stat()
        if known is not None:
            self.cache.remember(info, known)
        content = known or self.cache.digest(out / path, info)
        return File(path, info.st_size, content, bool(info.st_mode & 0o100))

    def digests_of(self, linked: Mapping[str, str]) -> dict[str, str]:
        """The digests, from the records, of files linked from artifacts of this store (absolute paths as values)."""
        found: dict[str, str] = {}
        by_key: dict[str, dict[str, str]] = {}
        for dst, src in linked.items():
            key, _, path = str(Path(src).relative_to(self.root)).partition("/out/")
            if key not in by_key:
                record = self.record(key)
                by_key[key] = {f.path: f.digest for f in record.files} if record else {}
            if path in by_key[key]:
                found[dst] = by_key[key][path]
        return found

    def publish(self, place: Path, record: Record) -> None:
        """Make `place` (with `out` and `log`) the artifact of its record's key, in one rename."""
        body = msgspec.json.encode(record)
        (place / "record.json").write_bytes(digest.of_bytes(body).encode() + b"\n" + body)
        final = self.root / record.key
        self.discard(final)
        place.rename(final)

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
        grave = self.root / "tmp" / f"old.{os.getpid()}.{secrets.token_hex(4)}"
        grave.parent.mkdir(exist_ok=True)
        path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)


def tree(files: Iterable[File], folders: Iterable[str]) -> str:
    """The content digest of an artifact."""
    entries = [(f.path + ("\0x" if f.executable else ""), f.digest) for f in files]
    return digest.of_tree([*entries, *((f"{path}\0/", "") for path in folders)])


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new, never half."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_bytes(data)
    aside.replace(path)


def _walk(top: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """(relative path, stat) of each entry below `top` that is no folder, links not followed; empty folders with None."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(top / folder) as listing:
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
