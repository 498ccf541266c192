"""What is known of a request when it is over: counted in the metrics, and a line in the log."""

from __future__ import annotations

import logging
import time
from typing import Any

from . import measures
from .logs import FIELDS

NAME = "modelserver"
LOG = logging.getLogger(NAME)
LONGEST = 200
"""Characters of a client's words that get into the log."""


class Account:
    """One request from its start; what is learned of it is set as it goes."""

    def __init__(self, verb: str, model: str, *, known: bool, logged: bool) -> None:
        """`verb` is what the endpoint is called; `known` tells whether there is such a model."""
        self.verb, self.model, self.label, self.logged = verb, model, model if known else "unknown", logged
        self.started = time.perf_counter()
        self.id: str | None = None
        self.rows = self.batch = self.tokens = 0
        """Of the request, and of the batch that it was in; tokens that were generated."""
        self.said = ""
        """What it was refused with."""

    def close(self, status: int) -> None:
        took = time.perf_counter() - self.started
        measures.REQUESTS.labels(self.label, status).inc()
        measures.LATENCY.labels(self.label).observe(took)
        if self.batch:
            measures.BATCH.labels(self.label).observe(self.batch)
        if self.batch or self.tokens:
            measures.INFERRED.labels(self.label).inc(self.rows)
        if self.tokens:
            measures.TOKENS.labels(self.label).inc(self.tokens)
        if not self.logged:
            return
        fields: dict[str, Any] = {"model": self.model[:LONGEST], "status": status, "ms": round(took * 1000, 3)}
        found = {"rows": self.rows, "batch": self.batch, "tokens": self.tokens, "error": self.said}
        fields |= {name: value for name, value in found.items() if value and (name != "rows" or not self.said)}
        if self.id is not None:
            fields["id"] = self.id[:LONGEST]
        LOG.info(self.verb, extra={FIELDS: fields})
