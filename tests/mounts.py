"""Small and read-only file systems, where this user may mount some."""

from __future__ import annotations

import contextlib
import functools
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@functools.cache
def _allowed() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def needs_mounts() -> None:
    """Skip the test where nothing can be mounted."""
    if not _allowed():
        pytest.skip("mounting needs root (CAP_SYS_ADMIN), which this user has not")


def read_only(folder: Path, command: list[str]) -> str:
    """The line of bash that runs `command` with `folder` mounted read-only for it alone."""
    where = shlex.quote(str(folder))
    mount = f"mount --bind {where} {where} && mount -o remount,ro,bind {where}"
    return shlex.join(["unshare", "-m", "bash", "-c", f"{mount} && exec {shlex.join(command)}"])


@contextlib.contextmanager
def small(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
