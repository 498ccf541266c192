"""Events as JSON, one a line, on stdout."""

from __future__ import annotations

import sys

import msgspec

from modelbuild import events


def write(event: events.AnyEvent) -> None:
    """Write one event and flush, so that a reader follows along."""
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()
