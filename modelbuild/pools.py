"""Who may use what only one build at a time may use, such as a GPU (doit has no resource pools)."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Pools:
    """A lock for each resource, by its name."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    @contextmanager
    def using(self, resources: Collection[str]) -> Iterator[None]:
        """Hold all of `resources`, taken in name order so that no two builds wait for each other."""
        with self._guard:
            locks = [self._locks.setdefault(name, threading.Lock()) for name in sorted(resources)]
        for lock in locks:
            lock.acquire()
        try:
            yield
        finally:
            for lock in reversed(locks):
                lock.release()
