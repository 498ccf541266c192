"""What happens during a run, as frozen events: work code emits them, reports fold over them, nobody prints."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from modelbuild.errors import Problem


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """Something that happened to a target, named `recipe:target`."""

    target: str


class Started(Event, frozen=True, tag="started"):
    """A build begins, for these reasons."""

    kind: str
    reasons: tuple[str, ...]


class Waiting(Event, frozen=True, tag="waiting"):
    """Another process builds the same thing."""

    what: str


class Progressed(Event, frozen=True, tag="progress"):
    """`done` of `total` in the unit of `what`."""

    done: float
    total: float
    what: str


class Said(Event, frozen=True, tag="said"):
    """A line from the build for the user."""

    text: str


class Built(Event, frozen=True, tag="built"):
    """A build succeeded. `changed` is false when the output is what it was before (early cutoff)."""

    key: str
    digest: str
    size: int
    wall_s: float
    cpu_s: float
    changed: bool


class Restored(Event, frozen=True, tag="restored"):
    """An artifact that was made before serves again."""

    key: str
    reasons: tuple[str, ...]


class Fresh(Event, frozen=True, tag="fresh"):
    """Nothing to do."""

    key: str


class Failed(Event, frozen=True, tag="failed"):
    """A build failed; what was published before stands."""

    problems: tuple[Problem, ...]


class Skipped(Event, frozen=True, tag="skipped"):
    """Not tried, because something it needs failed."""

    because: tuple[str, ...]


AnyEvent = Started | Waiting | Progressed | Said | Built | Restored | Fresh | Failed | Skipped
Sink = Callable[[AnyEvent], None]
