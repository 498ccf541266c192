"""What Polygraphy and TensorRT say: all of it goes to the log; warnings and errors are kept for the user.

Polygraphy's exceptions hide their cause ("Could not parse ONNX correctly"); the cause is a log message before it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from modelbuild.errors import ProblemError

LOGGER = "Polygraphy"
SUMMARIES = (
    "Could not parse ONNX correctly",
    "Invalid Engine. Please ensure the engine was built correctly",
    "Failed to parse ONNX model. Does the model file exist and contain a valid ONNX model?",
)
"""Polygraphy's own last words, which tell nothing once the messages before them are told."""
NOISE = (
    "--- Begin node ---",
    "--- End node ---",
    "'colored' module is not installed",
    "has Int64 binding",
    "Empty initializer",
)
LONGEST = 600


class Heard(logging.Handler):
    """Keeps what was said: `errors` and `warnings`, each once, in order, without Polygraphy's marks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = _plain(record.getMessage())
        kept = self.errors if record.levelno >= logging.ERROR else self.warnings
        if text and text not in kept and not any(noise in text for noise in NOISE):
            kept.append(text)

    def cause(self, error: BaseException) -> str:
        """The messages that led to `error`, most telling last; its own text where there were none."""
        told = [text for text in self.errors if text not in SUMMARIES]
        return "\n".join(told[-3:])[:LONGEST] or str(error)[:LONGEST]


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Send Polygraphy's and TensorRT's messages to stderr (the build's log) and hear what matters of them."""
    from polygraphy.logger import G_LOGGER

    before = (G_LOGGER.use_python_logging_system, G_LOGGER.module_severity)
    logger = logging.getLogger(LOGGER)
    heard, log = Heard(), logging.StreamHandler(sys.stderr)
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.INFO
    logger.setLevel(logging.INFO)
    propagated, logger.propagate = logger.propagate, False
    for handler in (heard, log):
        logger.addHandler(handler)
    try:
        yield heard
    finally:
        for handler in (heard, log):
            logger.removeHandler(handler)
        logger.propagate = propagated
        G_LOGGER.use_python_logging_system, G_LOGGER.module_severity = before


def failure(heard: Heard, error: Exception) -> str | None:
    """The cause to tell of an exception that Polygraphy or TensorRT raised; None for one that is not theirs."""
    if isinstance(error, ProblemError) or type(error).__module__.partition(".")[0] not in _theirs(error):
        return None
    return heard.cause(error)


def _theirs(error: Any) -> set[str]:
    """Packages whose exceptions are told by their text: pybind11 raises TensorRT's as plain RuntimeErrors."""
    return {"polygraphy", "builtins"} if isinstance(error, (RuntimeError, TypeError)) else {"polygraphy"}


def _plain(text: str) -> str:
    """A message without `[E]` and its like, and without the places in TensorRT's own source."""
    text = " ".join(text.split())
    for mark in ("[E] ", "[W] ", "[!] ", "[I] "):
        text = text.removeprefix(mark)
    return text
