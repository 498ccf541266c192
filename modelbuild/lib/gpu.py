"""The GPU at hand, as `nvidia-smi` tells of it."""

from __future__ import annotations

import shutil
import subprocess

import msgspec

QUERY = "name,compute_cap,driver_version"


class Gpu(msgspec.Struct, frozen=True):
    """A GPU: its name, its compute capability (`8.9`), its driver's version."""

    name: str
    sm: str
    driver: str


def first() -> Gpu | None:
    """The first GPU of this machine; None where there is none, or no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    line = [command, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    name, sm, driver = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    return Gpu(name, sm, driver)
