"""Texts generated together: a thread that takes waiting texts in, goes on by one token a row, and gives slots back.

Texts of a decoder-only model join the batch that runs, whatever their lengths; those of an encoder and a decoder run
with the ones they began with, and several such batches take turns.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .choosing import Chooser
from .pieces import Pieces
from .steps import Batch, Steps
from .wishes import Wishes

CANCEL_S = 0.05
"""How often requests are asked whether their client is gone."""


class Listener(Protocol):
    """Who gets the text of a request; called from the generator's thread."""

    def told(self, row: int, text: str, made: int, reason: str) -> None:
        """A piece of the text of a row, of `made` tokens so far; `reason` is empty but for the last."""

    def failed(self, cause: str) -> None:
        """Nothing more will come."""

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""

    def ended(self) -> None:
        """All rows are told."""


class Job:
    """A request: its texts as tokens, how each is to go on, and who hears of it."""

    def __init__(self, prompts: Sequence[Sequence[int]], mosts: Sequence[int], wishes: Wishes, heard: Listener) -> None:
        """`mosts`: the most new tokens of each text."""
        self.prompts, self.mosts, self.wishes, self.heard = prompts, mosts, wishes, heard
        self.open, self.over = len(prompts), False


class Row:
    """One text of a job while it is generated."""

    def __init__(self, job: Job, index: int, settings: Mapping[str, Any], tokenizer: Any) -> None:
        self.job, self.index, self.most, self.made = job, index, job.mosts[index], 0
        self.prompt, self.ends = job.prompts[index], settings["eos_ids"]
        start = settings.get("start_id")
        before = self.prompt if start is None else [start]
        self.chooser = Chooser(before, job.wishes, settings["rules"], self.ends, self.most, index)
        self.pieces = Pieces(tokenizer, self.prompt if start is None else (), job.wishes.stop)
        self.token = 0

    def take(self, logits: Any) -> bool:
        """Choose the next token, tell what it adds, and say whether the text goes on."""
        self.token = self.chooser.choose(logits)
        self.made += 1
        ended = self.token in self.ends
        text = "" if ended else self.pieces.push(self.token)
        reason = "stop" if self.pieces.stopped else "eos" if ended else "length" if self.made >= self.most else ""
        if reason and not self.pieces.stopped:
            text += self.pieces.finish()
            reason = "stop" if self.pieces.stopped else reason
        if text or reason:
            self.job.heard.told(self.index, text, self.made, reason)
        return not reason


class Generator:
    """Generates the texts of all jobs, at most `slots` at a time; others wait for their turn."""

    def __init__(self, steps: Steps, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self.steps, self.tokenizer, self.settings = steps, tokenizer, settings
        self.waiting: deque[Row] = deque()
        self.batches: list[Batch] = []
        self.changed = threading.Condition()
        self.stopping, self.looked = False, 0.0
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        rows = [Row(job, i, self.settings, self.tokenizer) for i in range(len(job.prompts))]
        with self.changed:
            self.waiting.extend(rows)
            self.changed.notify()

    def stop(self) -> None:
        """End the thread; what is under way gets an error."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()

    @property
    def rows(self) -> list[Row]:
        """The rows in a slot."""
        return [row for batch in self.batches for row in batch.rows]

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopping or self.waiting or self.batches)
                if self.stopping:
                    break
            self._drop_cancelled()
            self._admit()
            for batch in self.batches:
                self._go_on(batch)
            self._forget_empty()
        for row in [*self.rows, *self.waiting]:
            self._fail(row.job, "the server is stopping")

    def _drop_cancelled(self) -> None:
        """Take out the rows of requests whose clients are gone."""
        now = time.monotonic()
        if now - self.looked < CANCEL_S:
            return
        self.looked = now
        with self.changed:
            waiting = list(self.waiting)
        jobs = {id(row.job): row.job for row in [*self.rows, *waiting]}
        for job in jobs.values():
            if not job.over and job.heard.gone():
                job.over = True
                job.heard.ended()
        for batch in self.batches:
            self._keep(batch, [i for i, row in enumerate(batch.rows) if not row.job.over])
        self._forget_empty()

    def _forget_empty(self) -> None:
        self.batches = [batch for batch in self.batches if batch.rows]

    def _admit(self) -> None:
        free = self.settings["slots"] - len(self.rows)
        chosen: list[Row] = []
        with self.changed:
            while self.waiting and len(chosen) < free:
                row = self.waiting.popleft()
                if not row.job.over:
                    chosen.append(row)
        for rows in _of_like_length(chosen):
            self._start(rows)

    def _start(self, rows: list[Row]) -> None:
        try:
            batch, logits = self.steps.start(rows, [row.prompt for row in rows])
            self._take(batch, logits)
            if self.steps.joins and self.batches and batch.rows:
                self.batches[0].join(batch)
            elif batch.rows:
                self.batches.append(batch)
        except Exception as e:  # ONNX Runtime's exceptions share no base class
            for row in rows:
                self._fail(row.job, str(e))

    def _go_on(self, batch: Batch) -> None:
        rows = list(batch.rows)
        try:
            self._take(batch, self.steps.step(batch, [row.token for row in rows]))
        except Exception as e:
            for row in rows:
                self._fail(row.job, str(e))
            batch.rows = []

    def _take(self, batch: Batch, logits: Any) -> None:
        """Choose a token for each row, and let those go that end."""
        kept = []
        for i, row in enumerate(batch.rows):
            if row.job.over:
                continue
            if row.take(logits[i]):
                kept.append(i)
                continue
            row.job.open -= 1
            if not row.job.open:
                row.job.over = True
                row.job.heard.ended()
        self._keep(batch, kept)

    def _keep(self, batch: Batch, places: list[int]) -> None:
        if not places:
            batch.rows = []
        elif len(places) < len(batch.rows):
            batch.keep(places)

    def _fail(self, job: Job, cause: str) -> None:
        if not job.over:
            job.over = True
            job.heard.failed(cause)


def _of_like_length(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups whose longest text is at most about twice the shortest: padding is work for nothing."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: len(r.prompt)):
        if not groups or len(row.prompt) > 2 * len(groups[-1][0].prompt) + 16:
            groups.append([])
        groups[-1].append(row)
    return groups
