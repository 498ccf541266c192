"""Runs a build in a child process of this machine: its own process group, its output in a log, its messages heard."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

import msgspec

from modelbuild import job
from modelbuild.errors import Problem

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    }
)
"""Set for every build: the same hash order each time, no telemetry, no progress bars but ours.

The two limits (mallopt(3)) keep freed blocks of up to 128 MB for the next allocation. By glibc's defaults a block that
holds a model's weights comes anew from the kernel each time, which clears it: for MiniLM 0.3 to 0.5 CPU-s a stage.
"""


LONGEST_LINE = 64 << 20
"""Bytes of a message; what is longer is no message."""
MOST_SAID = 10_000
"""Lines of a build's talk that its record keeps. All are told as they come."""

WORKER = (sys.executable, "-P", "-m", "modelbuild.worker")
"""The command that runs the job whose file is its argument: by us with `--events`, by hand without."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a build went: no problems means that it succeeded."""

    problems: tuple[Problem, ...]
    linked: frozenset[str]
    """The files of the artifact (relative) that are hard links to files of its inputs."""
    log: tuple[str, ...]
    metrics: tuple[job.Metric, ...]
    cpu_s: float
    peak_rss_bytes: int


_children: set[subprocess.Popen[bytes]] = set()
_children_lock = threading.Lock()
_stopping = False
"""A plain flag, for signal handlers: a lock may be held by the very code that a signal interrupts."""


Hear = Callable[[job.AnyMessage], job.Varied | None]
"""Takes what a build says; an answer goes back to it."""


def run(task: Path, log: Path, hear: Hear) -> Outcome:
    """Run the job in the file `task`; its native output goes to `log`. Blocks until the process group is gone."""
    reader, writer = os.pipe()
    with log.open("ab") as output:
        command = [*WORKER, str(task), "--events", str(writer)]
        with _children_lock:
            child = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(writer,),
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )
            _children.add(child)
        os.close(writer)
        if _stopping:
            _kill(child)
        try:
            heard = _listen(reader, child.stdin, hear)
            child.wait()
        finally:
            _kill(child)
            child.wait()
            with _children_lock:
                _children.discard(child)
            if child.stdin:
                child.stdin.close()
    return _outcome(heard, child.returncode)


def stop_soon() -> None:
    """Let no build go on that starts from now; `stop` is to follow. Safe in a signal handler."""
    global _stopping
    _stopping = True


def stop() -> None:
    """End every running build, and those about to start: the driver was interrupted."""
    stop_soon()
    with _children_lock:
        running = list(_children)
    for child in running:
        _kill(child)


def stopping() -> bool:
    """Whether the run is to end: `stop` or `stop_soon` was called."""
    return _stopping


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group; a build cleans nothing up that its folder's removal would not."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _listen(reader: int, answers: IO[bytes] | None, hear: Hear) -> list[job.AnyMessage]:
    """What the child says but progress, until its end of the pipe closes; how much of it is kept is bounded."""
    heard: list[job.AnyMessage] = []
    said = 0
    with os.fdopen(reader, "rb") as lines:
        while line := lines.readline(LONGEST_LINE):
            message = job.hear(line)
            if message is None:
                continue
            said += isinstance(message, job.Log)
            if not isinstance(message, job.Progress) and not (isinstance(message, job.Log) and said > MOST_SAID):
                heard.append(message)
            answer = hear(message)
            if answer is not None and answers is not None:
                _send(answers, job.line(answer))
    return heard


def _send(answers: IO[bytes], line: bytes) -> None:
    """Write a line to the child, unless it is gone, which the end of its talk tells."""
    rest = memoryview(line)
    with contextlib.suppress(BrokenPipeError):
        while rest:
            rest = rest[answers.write(rest) :]


def _outcome(heard: list[job.AnyMessage], returncode: int) -> Outcome:
    done = next((m for m in heard if isinstance(m, job.Done)), None)
    told = tuple(p for m in heard if isinstance(m, job.Failed) for p in m.problems)
    problems = told or (() if done and returncode == 0 else (_death(returncode),))
    return Outcome(
        problems=problems,
        linked=frozenset(m.dst for m in heard if isinstance(m, job.Linked)),
        log=tuple(m.text for m in heard if isinstance(m, job.Log)),
        metrics=tuple(m for m in heard if isinstance(m, job.Metric)),
        cpu_s=done.cpu_s if done else 0.0,
        peak_rss_bytes=done.peak_rss_bytes if done else 0,
    )


def _death(returncode: int) -> Problem:
    """What to say of a build that ended without a word."""
    if returncode >= 0:
        return Problem(f"the build's process ended with status {returncode} before it was done")
    name = signal.Signals(-returncode).name if -returncode in list(signal.Signals) else f"signal {-returncode}"
    hint = "most often the system ran out of memory" if returncode == -signal.SIGKILL else "a native library crashed"
    return Problem(f"the build's process was ended by {name}", hint=f"{hint}; the log has what came before")
