"""What the driver and a build's child process say to each other: the job, and the messages back."""

from __future__ import annotations

import functools
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
    names: dict[str, tuple[str, ...]] = {}
    """field -> what the recipe calls its inputs, where the kind writes that down."""
    options: dict[str, tuple[dict[str, Any], ...]] = {}
    """field -> the options of its inputs as the recipe has them, where the kind tries others."""


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


class Vary(Message, frozen=True, tag="vary"):
    """The build asks for its inputs with other options of some targets: target -> option -> value."""

    label: str
    changes: dict[str, dict[str, Any]]


class Failed(Message, frozen=True, tag="failed"):
    problems: tuple[Problem, ...]


class Done(Message, frozen=True, tag="done"):
    """`cpu_s` and `peak_rss_bytes` are of the whole worker process."""

    cpu_s: float
    peak_rss_bytes: int


AnyMessage = Progress | Log | Metric | Linked | Vary | Failed | Done


class Varied(msgspec.Struct, frozen=True, omit_defaults=True):
    """The driver's answer to `Vary`: the folders of each field's artifacts, or why there are none."""

    inputs: dict[str, tuple[str, ...]] = {}
    problems: tuple[Problem, ...] = ()


def line(message: AnyMessage | Varied) -> bytes:
    """The message as a line of JSON. What is no UTF-8 in it, such as a file's name, is shown escaped."""
    try:
        return msgspec.json.encode(message) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(printable(msgspec.to_builtins(message))) + b"\n"


def printable(value: Any) -> Any:
    r"""Plain data with the lone surrogates of its texts as `\udcff`: JSON cannot hold them."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {printable(k): printable(v) for k, v in value.items()}
        case list() | tuple():
            return [printable(v) for v in value]
        case _:
            return value


def hear(data: bytes) -> AnyMessage | None:
    """The message in a line, or None: a library that writes where it should not is no reason to fail."""
    try:
        message: AnyMessage = _decoder().decode(data)
    except (ValueError, RecursionError):
        return None
    return message


@functools.cache
def _decoder() -> msgspec.json.Decoder[AnyMessage]:
    """Made when a build first talks: most commands hear none."""
    return msgspec.json.Decoder(AnyMessage)


def dump(task: Job) -> bytes:
    """The job as the JSON of its file."""
    return msgspec.json.format(msgspec.json.encode(task, enc_hook=str), indent=2) + b"\n"


def load(data: bytes) -> Job:
    """The job in a file's bytes; raises `msgspec.MsgspecError` when it is none."""
    return msgspec.json.decode(data, type=Job, dec_hook=lambda kind, text: kind(text))
