"""Removes from the store what nobody needs: artifacts by key, leftovers of builds that died, failures kept aside."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
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


def leftovers(store: Store) -> Iterator[Path]:
    """What builds that died left behind. Only to be asked while no build runs."""
    for folder in ("tmp", "locks", "failed"):
        with contextlib.suppress(FileNotFoundError):
            yield from sorted((store.root / folder).iterdir())
    yield from sorted((*store.root.glob(".*"), *store.root.glob("names/*/.*")))


def sweep(store: Store, paths: Collection[Path], *, dry_run: bool) -> list[Swept]:
    """Remove `paths` of the store unless it is a dry run; what each frees."""
    swept = [Swept(str(path.relative_to(store.root)), _freed(path)) for path in paths]
    if not dry_run:
        for path in paths:
            if path.is_dir() and KEY.fullmatch(path.name):
                store.discard(path)
            else:
                _remove(path)
    return swept


def _freed(path: Path) -> int:
    """Bytes on disk that nothing else links to."""
    if not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            info = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - many files
            total += info.st_size if info.st_nlink == 1 else 0
    return total


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
