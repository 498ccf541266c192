"""Events as JSON, one a line, on stdout."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from modelbuild import events
from modelbuild.job import printable


def text(value: Any) -> str:
    """Any value of ours as JSON on one line. What is no UTF-8 in it, such as a path's bytes, is shown escaped."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(printable(msgspec.to_builtins(value))).decode()


def write(event: events.AnyEvent) -> None:
    """Write one event and flush, so that a reader follows along."""
    sys.stdout.write(text(event) + "\n")
    sys.stdout.flush()
