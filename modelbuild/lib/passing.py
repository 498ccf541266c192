"""Passing a model through: an artifact that is another one's files, linked, with something beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from modelbuild.artifact import DESCRIPTOR, Artifact


class Links(Protocol):
    """What of a build's context is needed here."""

    out: Path

    def link(self, src: Path, dst: Path) -> None:
        """Put `src` at `dst` without a copy where that is possible."""


def link(ctx: Links, model: Artifact, but: str) -> None:
    """Link all files of `model` but its descriptor and the file `but`, which the build writes anew."""
    for path in sorted(model.path.rglob("*")):
        name = path.relative_to(model.path).as_posix()
        if path.is_file() and name not in (DESCRIPTOR, but):
            ctx.link(path, ctx.out / name)
