"""The links by which people find artifacts, `artifacts/<recipe>/<target>`, and why each target was last built."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelbuild.errors import problem

KEY = re.compile(r"[0-9a-f]{32}")
KEPT_REASONS = 20


class Reasons(msgspec.Struct, frozen=True):
    """Why a target was built or restored, at a time (seconds since the epoch)."""

    key: str
    action: str
    at: float
    reasons: tuple[str, ...]


class Names:
    """The names in an `artifacts` folder that link into its `store` folder."""

    def __init__(self, artifacts: Path, store: Path) -> None:
        self.artifacts, self.store = artifacts, store
        self._top = str(artifacts)
        self._ours = re.compile(rf"\.\./{re.escape(store.name)}/({KEY.pattern})/out")

    def path(self, recipe: str, target: str) -> Path:
        """The link by which users find a target's artifact."""
        return self.artifacts / recipe / target

    def key(self, recipe: str, target: str) -> str | None:
        """The key that a target's name links to, or None."""
        try:
            text = os.readlink(f"{self._top}/{recipe}/{target}")  # noqa: PTH115 - the hot path
        except OSError:
            return None
        match = self._ours.fullmatch(text)
        return match[1] if match else None

    def link(self, recipe: str, target: str, key: str) -> None:
        """Make a target's name link to `key`, in one step."""
        link = self.path(recipe, target)
        _own_folder(link.parent)
        aside = link.parent / f".{os.urandom(8).hex()}"
        aside.symlink_to(Path("..") / self.store.name / key / "out")
        try:
            aside.replace(link)
        except OSError as e:
            aside.unlink()
            raise problem(
                "something that is not ours is in the place of an artifact's link",
                path=link,
                cause=e.strerror or e,
                hint="move it away",
            ) from None

    def all(self) -> Iterator[tuple[str, str]]:
        """Every (recipe, target) that has a link of ours."""
        for folder in sorted(self.artifacts.glob("*/")):
            if folder.name != self.store.name and not folder.is_symlink():
                yield from ((folder.name, p.name) for p in sorted(folder.iterdir()) if self.key(folder.name, p.name))

    def unlink(self, recipe: str, target: str) -> None:
        """Remove a target's link, if it is ours, and its folder when it was the last."""
        path = self.path(recipe, target)
        if path.parent.is_symlink() or self.key(recipe, target) is None:
            return
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def reasons(self, recipe: str, target: str) -> tuple[Reasons, ...]:
        """Why a target was built, oldest first."""
        try:
            lines = self._reasons_path(recipe, target).read_bytes().splitlines()
        except OSError:
            return ()
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                found.append(msgspec.json.decode(line, type=Reasons))
        return tuple(found)

    def add_reasons(self, recipe: str, target: str, reasons: Reasons) -> None:
        """Remember why a target was built; only the latest few are kept."""
        kept = (*self.reasons(recipe, target), reasons)[-KEPT_REASONS:]
        path = self._reasons_path(recipe, target)
        _own_folder(path.parent)
        _write_whole(path, b"".join(msgspec.json.encode(r) + b"\n" for r in kept))

    def _reasons_path(self, recipe: str, target: str) -> Path:
        return self.store / "names" / recipe / f"{target}.jsonl"


def _own_folder(folder: Path) -> None:
    """Make the folder; a `ProblemError` where a link would lead what is written in it elsewhere."""
    if folder.is_symlink():
        title = "a link is in the place of a folder of ours, and is not followed"
        raise problem(title, path=folder, leads_to=os.path.realpath(folder), hint="move it away")
    folder.mkdir(parents=True, exist_ok=True)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new, never half."""
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
