"""Golden files: what a test expects, as a file that `UPDATE_GOLDEN=1` rewrites."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def check(path: Path, actual: str) -> None:
    """Compare `actual` with the file, or write it where the environment asks for that."""
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual)
    assert path.is_file(), f"{path} is missing: UPDATE_GOLDEN=1 writes it"
    kept = path.read_text()
    changes = "\n".join(difflib.unified_diff(kept.splitlines(), actual.splitlines(), lineterm="", n=1))
    assert actual == kept, f"{path.name} is out of date: UPDATE_GOLDEN=1 rewrites it, then read the diff\n{changes}"
