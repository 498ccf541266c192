"""Removes from the store what nobody needs: artifacts by key, leftovers of builds that died, failures kept aside."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from modelbuild.names import KEY
from modelbuild.store import Store


class Swept(msgspec.Struct, frozen=True):
    """Something removed, or to be removed: its path in the store and the bytes that come free with it."""

    path: str
    size: int


def unneeded(store: Store, keep: Collection[str], keep_days: float) -> list[str]:
    """The keys of artifacts that are not in `keep` and were built more than `keep_days` ago; damaged ones at once."""
    oldest = time.time() - keep_days * 86400
    found = []
    for key in store.all_keys():
        record = store.record(key)
        if key not in keep and (record is None or not keep_days or record.built_at < oldest):
            found.append(key)
    return found


def beyond(store: Store, unneeded: Collection[str], budget: int) -> tuple[list[str], int]:
    """Which of the `unneeded` keys must go for the store to fit in `budget` bytes, oldest first; what it takes then.

    Damaged ones go whether or not. Files that several artifacts link to count once, and are freed with the last.
    """
    records = {key: store.record(key) for key in unneeded}
    files = {key: {(i.st_dev, i.st_ino): i for i in _files(store.root / key)} for key in store.all_keys()}
    links = Counter(file for inside in files.values() for file in inside)
    total = sum(info.st_size for info in {f: i for inside in files.values() for f, i in inside.items()}.values())
    gone = []
    for key in sorted(unneeded, key=lambda k: r.built_at if (r := records[k]) else 0.0):
        if records[key] is not None and total <= budget:
            continue
        gone.append(key)
        links.subtract(files[key].keys())
        total -= sum(info.st_size for file, info in files[key].items() if not links[file])
    return gone, total


def leftovers(store: Store) -> Iterator[Path]:
    """What builds that died left behind. Only to be asked while no build runs."""
    for folder in ("tmp", "locks", "failed"):
        with contextlib.suppress(FileNotFoundError):
            yield from sorted((store.root / folder).iterdir())
    yield from sorted((*store.root.glob(".*"), *store.root.glob("names/*/.*"), *store.root.glob("pins/.*")))


def sweep(store: Store, paths: Collection[Path], *, dry_run: bool) -> list[Swept]:
    """Remove `paths` of the store unless it is a dry run; what each frees."""
    sizes = list(_freed(paths))
    swept = [Swept(str(path.relative_to(store.root)), size) for path, size in zip(paths, sizes, strict=True)]
    if not dry_run:
        for path in paths:
            if path.is_dir() and KEY.fullmatch(path.name):
                store.discard(path)
            else:
                _remove(path)
    return swept


def _freed(paths: Iterable[Path]) -> Iterator[int]:
    """Bytes on disk that come free when one path after the other goes: a file's with the last link to it."""
    left: dict[tuple[int, int], int] = {}
    for path in paths:
        total = 0
        for info in _files(path):
            file = info.st_dev, info.st_ino
            left[file] = left.get(file, info.st_nlink) - 1
            total += info.st_size if not left[file] else 0
        yield total


def _files(path: Path) -> Iterator[os.stat_result]:
    """The stat of each file below `path`, or of `path` itself."""
    if path.is_symlink() or not path.is_dir():
        yield path.lstat()
        return
    for folder, _, names in os.walk(path):
        for name in names:
            yield os.lstat(os.path.join(folder, name))  # noqa: PTH118 - many files


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
