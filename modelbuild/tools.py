"""Fingerprints of tools and hardware, read from what is installed without importing any of it."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Collection, Mapping

from modelbuild.errors import Problem, ProblemError

FLAVOURS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Packages that install the same module: any one serves, two beside each other silently break it."""


def versions(names: Collection[str]) -> dict[str, str | None]:
    """The version of each package, None where it is not installed; a `ProblemError` for two flavours at once."""
    return {name: version(name) for name in sorted(names)}


def version(name: str) -> str | None:
    """The installed version of a package, a flavour of it, or of what comes with the interpreter (`zlib`).

    Of a flavour made for one CUDA version, that too: `10.16.1.11 (cu13)`.
    """
    if name == "zlib":
        import zlib

        return zlib.ZLIB_RUNTIME_VERSION
    found = {f: v for f in FLAVOURS.get(name, (name,)) if (v := installed().get(_normal(f)))}
    if not found and (plain := installed().get(_normal(name))):
        found = {name: plain}
    if len(found) > 1:
        raise ProblemError(two_flavours(name, found))
    for flavour, number in found.items():
        cuda = re.search(r"-(cu\d+)(?:-|$)", flavour)
        return f"{number} ({cuda[1]})" if cuda else number
    return None


def two_flavours(name: str, found: Mapping[str, str]) -> Problem:
    """What to say when packages that overwrite each other are installed together."""
    return Problem(
        f"{' and '.join(f'`{f}`' for f in found)} are both installed",
        facts=(("versions", ", ".join(f"{f} {v}" for f, v in found.items())),),
        hint=f"they overwrite each other: pip uninstall -y {' '.join(found)}, then install the one you want",
    )


@functools.cache
def installed() -> Mapping[str, str]:
    """Normalised package name -> version, from the names of the `.dist-info` folders on `sys.path`.

    The first folder on the path wins, as it does for imports. Reading the names alone is about a hundred times
    cheaper than `importlib.metadata`, which this has to agree with.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - the driver's hot path
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                package, _, number = name[: -len(".dist-info")].rpartition("-")
                found.setdefault(_normal(package), number)
    return found


def _normal(name: str) -> str:
    """The name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hardware(names: Collection[str]) -> dict[str, str | None]:
    """Facts of the machine that a kind names, None where it has no such thing.

    `gpu` (its name), `sm` (its compute capability, 8.9), `driver`, `nvidia` (`yes` where there is any GPU) and
    `platform` (`linux-x86_64`).
    """
    if not names:
        return {}
    nvidia = _nvidia()
    found = {**nvidia, "nvidia": "yes" if nvidia["gpu"] else None, "platform": f"{sys.platform}-{os.uname().machine}"}
    unknown = set(names) - found.keys()
    if unknown:
        raise ProblemError(Problem(f"unknown hardware fact `{min(unknown)}`", facts=(("known", ", ".join(found)),)))
    return {name: found[name] for name in sorted(names)}


@functools.cache
def _nvidia() -> Mapping[str, str | None]:
    """The first GPU as `nvidia-smi` tells it."""
    import shutil
    import subprocess

    facts: dict[str, str | None] = {"gpu": None, "sm": None, "driver": None}
    command = shutil.which("nvidia-smi")
    if command is None:
        return facts
    query = [command, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode == 0 and done.stdout.strip():
        facts.update(zip(facts, (v.strip() for v in done.stdout.splitlines()[0].split(",")), strict=True))
    return facts
