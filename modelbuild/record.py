"""The record of an artifact: what it is, down to each file's digest, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from modelbuild import digest
from modelbuild.manifest import Manifest


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of an artifact: relative path, bytes, content digest, whether it may be executed."""

    path: str
    size: int
    digest: str
    executable: bool = False


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A metric that the build told."""

    value: float
    unit: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is known of an artifact. `key` is its manifest's, `digest` its content's; times are in seconds."""

    key: str
    manifest: Manifest
    digest: str
    files: tuple[File, ...]
    folders: tuple[str, ...] = ()
    """Folders with nothing in them, which some formats need."""
    metrics: dict[str, Figure] = {}
    log: tuple[str, ...] = ()
    built_at: float = 0.0
    """Since the epoch."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


def tree(files: Iterable[File], folders: Iterable[str]) -> str:
    """The content digest of an artifact."""
    entries = [(f.path + ("\0x" if f.executable else ""), f.digest) for f in files]
    return digest.of_tree([*entries, *((f"{path}\0/", "") for path in folders)])


def seal(record: Record) -> bytes:
    """The record as a file's bytes: a line with the digest of what follows, then JSON."""
    body = msgspec.json.encode(record)
    return digest.of_bytes(body).encode() + b"\n" + body


def unseal(data: bytes) -> Record | None:
    """The record in a file's bytes, or None when they are not what `seal` wrote."""
    line, _, body = data.partition(b"\n")
    if line.decode("ascii", "replace") != digest.of_bytes(body):
        return None
    try:
        return msgspec.json.decode(body, type=Record)
    except (ValueError, RecursionError):
        return None
