"""Requests of many clients run together: whatever waits when a worker is free becomes its batch, without delay."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from .protocol import Arrays, RefusalError


class Ran(NamedTuple):
    """How a request was run: its answer, or what went wrong; and the rows of its batch."""

    answer: Arrays | None
    error: Exception | None
    rows: int


class Job:
    """A request that waits: requests of the same `like` can share a batch. `done` is called in the event loop."""

    def __init__(self, inputs: Arrays, rows: int, like: Hashable, future: asyncio.Future[Ran]) -> None:
        self.inputs, self.rows, self.like, self.future = inputs, rows, like, future
        self.dropped = False


class Batches:
    """A queue and the threads that take from it. `run` gets the inputs of several requests and answers each."""

    def __init__(
        self, run: Callable[[Sequence[Arrays]], Sequence[Arrays]], *, workers: int, max_rows: int, max_queue: int
    ) -> None:
        self.run, self.max_rows, self.max_queue = run, max_rows, max_queue
        self.waiting: deque[Job] = deque()
        self.rows = 0
        self.idle = 0
        self.changed = threading.Condition()
        self.open = True
        self.threads = [threading.Thread(target=self._work, daemon=True, name=f"batch-{i}") for i in range(workers)]
        for thread in self.threads:
            thread.start()

    def put(self, inputs: Arrays, rows: int, like: Hashable) -> Job:
        """Queue a request; a `RefusalError` (503) when too much waits already. Called in the event loop."""
        job = Job(inputs, rows, like, asyncio.get_running_loop().create_future())
        with self.changed:
            if not self.open or self.rows + rows > self.max_queue:
                raise RefusalError("too many requests are waiting; try again later", 503)
            self.waiting.append(job)
            self.rows += rows
            self.changed.notify()
        return job

    def drop(self, job: Job) -> None:
        """Give up a request that nobody waits for any more; it is not run unless it runs already."""
        with self.changed:
            job.dropped = True
            if job in self.waiting:
                self.waiting.remove(job)
                self.rows -= job.rows

    def close(self) -> None:
        """Let the workers end when nothing waits."""
        with self.changed:
            self.open = False
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            ran = self._ran(batch)
            batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch, ran)

    def _take(self) -> list[Job]:
        """The oldest request, and those after it that can share its batch; none when closed.

        Workers that are idle too get their share of what waits.
        """
        with self.changed:
            self.idle += 1
            while not self.waiting:
                if not self.open:
                    return []
                self.changed.wait()
            most = min(self.max_rows, -(-self.rows // self.idle))
            self.idle -= 1
            first = self.waiting.popleft()
            batch, rows, left = [first], first.rows, deque[Job]()
            while self.waiting and rows < most:
                job = self.waiting.popleft()
                if job.like == first.like and rows + job.rows <= most:
                    batch.append(job)
                    rows += job.rows
                else:
                    left.append(job)
            self.waiting.extendleft(reversed(left))
            self.rows -= rows
            return batch

    def _ran(self, batch: Sequence[Job]) -> list[Ran]:
        """Each request's answer. Where a batch fails, each is run alone, so that one's fault is not another's."""
        rows = sum(job.rows for job in batch)
        try:
            return [Ran(answer, None, rows) for answer in self.run([job.inputs for job in batch])]
        except Exception as e:
            if len(batch) == 1:
                return [Ran(None, e, rows)]
            return [self._ran([job])[0] for job in batch]


def _deliver(batch: Sequence[Job], ran: Sequence[Ran]) -> None:
    for job, result in zip(batch, ran, strict=True):
        if not job.future.done():
            job.future.set_result(result)
