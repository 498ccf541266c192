"""Golden files: what a test expects, as a file that `UPDATE_GOLDEN=1` rewrites."""

from __future__ import annotations

import os
from pathlib import Path


def check(path: Path, actual: str) -> None:
    """Compare `actual` with the file, or write it where the environment asks for that."""
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual)
    assert path.is_file(), f"{path} is missing: UPDATE_GOLDEN=1 writes it"
    assert actual == path.read_text(), f"{path.name} is out of date: UPDATE_GOLDEN=1 rewrites it, then read the diff"
