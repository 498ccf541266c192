"""Pins: artifacts that `gc` keeps whatever recipes say, each a small file in the store named after its key."""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from modelbuild.names import KEY
from modelbuild.store import Store


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """An artifact to keep: its key, the target that it was of, and since when (seconds since the epoch)."""

    key: str
    target: str = ""
    at: float = 0.0


def add(store: Store, key: str, target: str) -> Pin:
    """Keep the artifact of `key`."""
    pin = Pin(key, target, time.time())
    folder = store.root / "pins"
    folder.mkdir(exist_ok=True)
    aside = folder / f".{key}.{os.urandom(4).hex()}"
    aside.write_bytes(msgspec.json.encode(pin) + b"\n")
    aside.replace(folder / key)
    return pin


def remove(store: Store, key: str) -> None:
    """Keep it no longer, if it was pinned."""
    (store.root / "pins" / key).unlink(missing_ok=True)


def every(store: Store) -> tuple[Pin, ...]:
    """All pins, oldest first. It is a file's name that pins: what it says may be damaged."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in (store.root / "pins").iterdir():
            if not KEY.fullmatch(path.name):
                continue
            pin = Pin(path.name)
            with contextlib.suppress(OSError, ValueError, RecursionError):
                pin = msgspec.structs.replace(msgspec.json.decode(path.read_bytes(), type=Pin), key=path.name)
            found.append(pin)
    return tuple(sorted(found, key=lambda pin: pin.at))
