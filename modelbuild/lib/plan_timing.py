"""TensorRT's timing caches: one file for each TensorRT version and GPU, shared by all builds of a user.

They make a rebuild faster and change nothing that a plan promises, so they are no part of any key. TensorRT-RTX times
nothing at build time and has none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = "MODELBUILD_TIMING_CACHE"
"""An environment variable that names another folder for them."""


def path(version: str, gpu: str) -> Path:
    """The cache of a TensorRT version on a GPU, its folder made. Polygraphy locks it, and merges what is new."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(FOLDER) or Path(home) / "modelbuild" / "timing")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_plain(version)}-{_plain(gpu)}.cache"


def told(file: Path) -> str:
    """The provenance line of a cache as it was used: its name, size and digest."""
    import xxhash

    if not file.is_file():
        return f"timing cache {file.name}: new"
    data = file.read_bytes()
    return f"timing cache {file.name}: {len(data)} bytes, xxh3-128 {xxhash.xxh3_128_hexdigest(data)}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
