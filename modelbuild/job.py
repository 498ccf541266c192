"""What the driver and a build's child process say to each other: the job, and the messages back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import Problem


class SourceUse(msgspec.Struct, frozen=True):
    """A source as it was hashed: the path the recipe names and the files, absolute, that belong to it."""

    path: Path
    files: tuple[Path, ...]


class Job(msgspec.Struct, frozen=True):
    """All that a build needs, as a JSON file. Paths are absolute."""

    kind: str
    spec: dict[str, Any]
    inputs: dict[str, tuple[Path, ...]]
    sources: dict[str, SourceUse]
    history: dict[str, tuple[dict[str, Any], ...]]
    out: Path
    scratch: Path


class Message(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t"):
    """One line from the worker to the driver."""


class Progress(Message, frozen=True, tag="progress"):
    done: float
    total: float
    what: str


class Log(Message, frozen=True, tag="log"):
    text: str


class Metric(Message, frozen=True, tag="metric"):
    name: str
    value: float
    unit: str = ""


class Linked(Message, frozen=True, tag="linked"):
    """A file of the artifact (relative) that is a hard link to a file of an input."""

    dst: str


class Failed(Message, frozen=True, tag="failed"):
    problems: tuple[Problem, ...]


class Done(Message, frozen=True, tag="done"):
    """`cpu_s` and `peak_rss_bytes` are of the whole worker process."""

    cpu_s: float
    peak_rss_bytes: int


AnyMessage = Progress | Log | Metric | Linked | Failed | Done


def dump(task: Job) -> bytes:
    """The job as the JSON of its file."""
    return msgspec.json.format(msgspec.json.encode(task, enc_hook=str), indent=2) + b"\n"


def load(data: bytes) -> Job:
    """The job in a file's bytes; raises `msgspec.MsgspecError` when it is none."""
    return msgspec.json.decode(data, type=Job, dec_hook=lambda kind, text: kind(text))
