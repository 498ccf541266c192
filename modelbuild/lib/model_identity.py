"""Which model an artifact holds, whatever else travels with it: how one is known again after it was passed through."""

from __future__ import annotations

from pathlib import Path

import xxhash

from modelbuild.artifact import Artifact
from modelbuild.lib import external_data

BLOCK = 1 << 20


def files(model: Artifact) -> tuple[Path, ...]:
    """The files of the model's graphs and of their weights, in the order of their names."""
    found: dict[str, Path] = {}
    for graph in model.descriptor.components.values():
        path = model.path / graph.file
        beside = path.with_name(path.name + external_data.DATA_SUFFIX)
        found |= {p.relative_to(model.path).as_posix(): p for p in (path, beside) if p.is_file()}
    return tuple(found[name] for name in sorted(found))


def identity(model: Artifact) -> str:
    """The xxh3-128 of those files' names and bytes, 32 hex digits: equal for models that are the same."""
    state = xxhash.xxh3_128()
    for path in files(model):
        state.update(f"{path.relative_to(model.path).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(BLOCK):
                state.update(block)
    return state.hexdigest()


def size(model: Artifact) -> int:
    """Bytes of those files."""
    return sum(path.stat().st_size for path in files(model))
