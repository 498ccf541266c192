"""Which TensorRT makes and runs a plan: TensorRT-RTX, which compiles without a GPU, or TensorRT.

Polygraphy drives both. A process can hold one of them, because Polygraphy decides at its import; each build runs in
a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from typing import Any, Literal

import msgspec

from modelbuild.errors import problem

Name = Literal["rtx", "tensorrt"]
TITLES = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
MODULES = {"rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt": ("tensorrt", "tensorrt_bindings")}
"""The module of the package that users install by hand, and that of the wheel behind it, which is enough."""
EXTRAS = {"rtx": "rtx", "tensorrt": "trt"}
SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
"""Polygraphy reads this variable at import: `1` makes it use TensorRT-RTX."""


class Backend(msgspec.Struct, frozen=True):
    """A loaded TensorRT: `trt` is its Python module, `version` has four parts."""

    name: Name
    trt: Any
    version: str

    def __str__(self) -> str:
        return f"{TITLES[self.name]} {self.version}"


def resolve(wanted: str) -> Name:
    """`auto` as one of the two: TensorRT where it and a GPU are installed, else TensorRT-RTX."""
    if wanted in ("rtx", "tensorrt"):
        return "rtx" if wanted == "rtx" else "tensorrt"
    installed = any(importlib.util.find_spec(module) for module in MODULES["tensorrt"])
    return "tensorrt" if installed and shutil.which("nvidia-smi") else "rtx"


def is_bound() -> bool:
    """Whether one TensorRT was chosen already, by us, the user's environment or Polygraphy's import."""
    return "polygraphy.config" in sys.modules or SWITCH in os.environ


def bind(name: Name) -> None:
    """Make Polygraphy use this TensorRT from its import on; a `ProblemError` when it uses the other one already."""
    polygraphy = sys.modules.get("polygraphy.config")
    if polygraphy is not None and bool(polygraphy.USE_TENSORRT_RTX) != (name == "rtx"):
        other = "tensorrt" if name == "rtx" else "rtx"
        raise problem(
            f"this process already uses {TITLES[other]}: it cannot use {TITLES[name]} as well",
            hint="use one process for each",
        )
    os.environ[SWITCH] = "1" if name == "rtx" else "0"


def load(name: Name) -> Backend:
    """Import TensorRT and make Polygraphy use it; a `ProblemError` when it is missing or the other one is in use."""
    bind(name)
    public, wheel = MODULES[name]
    module = _import(public, name) or _import(wheel, name)
    if module is None:
        raise problem(f"{TITLES[name]} is not installed", hint=f"pip install 'modelbuild[{EXTRAS[name]}]'")
    # The public module is nothing but the wheel's, and Polygraphy knows it by this name.
    sys.modules.setdefault(public, module)
    return Backend(name, module, str(module.__version__))


def _import(module: str, name: Name) -> Any:
    """The module, or None where it is not installed; a `ProblemError` when its libraries do not load."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:
        raise problem(
            f"{TITLES[name]} is installed, but its libraries do not load",
            module=module,
            cause=str(e).splitlines()[0],
            hint=f"pip install --force-reinstall 'modelbuild[{EXTRAS[name]}]', all of its packages at one version",
        ) from e
