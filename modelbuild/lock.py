"""Locks between processes: one per key for builders, and one that keeps `gc` away from running builds."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

Waiting: TypeAlias = Callable[[], None]
"""Called once, when somebody else holds the lock."""


def _silently() -> None:
    """The `Waiting` of those who do not care."""


@contextlib.contextmanager
def exclusive(path: Path, waiting: Waiting = _silently) -> Iterator[None]:
    """Hold `path` alone among processes and threads; `waiting` is called once when somebody else has it.

    The kernel lets go when the holder dies. The file is removed on the way out, so whoever was waiting checks that
    what it locked is still the file of that name.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _try(descriptor, fcntl.LOCK_EX):
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_current(descriptor, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold `path` together with other builders, against `sole`."""
    with _held(path, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def sole(path: Path, waiting: Waiting = _silently) -> Iterator[None]:
    """Hold `path` against every `shared` holder."""
    with _held(path, fcntl.LOCK_EX, waiting):
        yield


@contextlib.contextmanager
def _held(path: Path, mode: int, waiting: Waiting = _silently) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _try(descriptor, mode):
            waiting()
            fcntl.flock(descriptor, mode)
        yield
    finally:
        os.close(descriptor)


def _try(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
