"""Every fact that can change an output, as one list: the action key is its hash, and `why` is its diff."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from modelbuild import digest


class SourceFact(msgspec.Struct, frozen=True):
    """A source by content. `suffix` is a file's (`.csv`), which tells some kinds how to read it; a folder has none."""

    digest: str
    suffix: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What went into an artifact. It has no target's name, no path and no time, so that these can change freely."""

    kind: str
    version: int
    options: dict[str, Any]
    inputs: dict[str, tuple[str, ...]]
    """field -> the content digests of the artifacts it refers to."""
    lineage: dict[str, str]
    """field -> the digest of how its inputs were made, for kinds that write that down."""
    sources: dict[str, SourceFact]
    tools: dict[str, str | None]
    hardware: dict[str, str | None]
    names: dict[str, tuple[str, ...]] = {}
    """field -> what the recipe calls its inputs, for kinds that write that down."""


class Change(msgspec.Struct, frozen=True):
    """One fact that differs; None on the side where it is absent."""

    fact: str
    old: str | None
    new: str | None


def facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each fact as (name, value), in a fixed order: both the key and its explanation are made of these."""
    yield "kind", manifest.kind
    yield "version", str(manifest.version)
    for name, value in sorted(manifest.options.items()):
        yield f"option.{name}", canonical(value).decode()
    for name, digests in sorted(manifest.inputs.items()):
        yield f"input.{name}", " ".join(digests)
    for name, called in sorted(manifest.names.items()):
        yield f"names.{name}", " ".join(called)
    for name, lineage in sorted(manifest.lineage.items()):
        yield f"lineage.{name}", lineage
    for name, source in sorted(manifest.sources.items()):
        yield f"source.{name}", f"{source.digest}{source.suffix}"
    for group, table in (("tool", manifest.tools), ("hardware", manifest.hardware)):
        for name, text in sorted(table.items()):
            yield f"{group}.{name}", text or "none"


def key(manifest: Manifest) -> str:
    """The action key: 32 hex digits."""
    return digest.of_bytes(canonical([list(fact) for fact in facts(manifest)]))


def diff(old: Manifest, new: Manifest) -> tuple[Change, ...]:
    """The facts that differ, in their fixed order, those that went away last."""
    before, after = dict(facts(old)), dict(facts(new))
    changed = [Change(name, before.get(name), value) for name, value in after.items() if before.get(name) != value]
    gone = [Change(name, value, None) for name, value in before.items() if name not in after]
    return (*changed, *gone)


def history(stages: Sequence[tuple[Manifest, str]]) -> tuple[dict[str, Any], ...]:
    """Manifests with their keys and output digests as plain data, for a build that writes them down."""
    return tuple({**msgspec.to_builtins(made), "key": key(made), "output": output} for made, output in stages)


def lineage(stages: Sequence[tuple[Manifest, str]]) -> str:
    """The digest of a history: it changes when any stage above was made differently."""
    return digest.of_bytes(canonical([[key(made), output] for made, output in stages]))


def canonical(value: Any) -> bytes:
    """JSON with the same bytes for equal values, whatever order a mapping was written in."""
    return msgspec.json.encode(value, order="deterministic")
