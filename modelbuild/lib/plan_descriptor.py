"""What a plan says of itself: the descriptor's settings, and the lines for the user. Nothing of it needs the plan.

An engine can be inspected only on a GPU it runs on, so all this is taken from the network at build time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.lib.gpu import Gpu
from modelbuild.lib.plan_backend import Backend
from modelbuild.lib.plan_config import Options
from modelbuild.lib.plan_network import Layer, summary
from modelbuild.lib.plan_profiles import Shapes

PORTABLE = "8.0+"
"""Compute capabilities of a plan that runs on Ampere and all newer GPUs."""
NEEDED = {"float8_e4m3fn": "8.9+", "float4_e2m1fn": "12.0+"}
"""What such a plan needs instead when it computes in these types (TensorRT-RTX's support matrix)."""


def settings(
    backend: Backend,
    options: Options,
    profiles: Sequence[Mapping[str, Shapes]],
    layers: Sequence[Layer],
    gpu: Gpu | None,
) -> dict[str, Any]:
    """The settings of a plan: who made it, where it runs, which shapes it takes, what computes in which precision.

    `gpu` is the one it was built on, where the plan depends on it.
    """
    from importlib import metadata

    made = {
        "backend": backend.name,
        "backend_version": backend.version,
        "polygraphy_version": metadata.version("polygraphy"),
        "compute_capabilities": capabilities(backend, options, gpu, layers),
        "layers": summary(layers),
        "profiles": [msgspec.to_builtins(each) for each in profiles],
        "workspace_mib": options.workspace_mib,
    }
    if backend.name == "tensorrt":
        made["hardware_compatibility"] = options.hardware_compatibility
        made["version_compatible"] = options.version_compatible
        if gpu is not None and options.hardware_compatibility == "none":
            made["gpu"] = gpu.name
    return made


def capabilities(backend: Backend, options: Options, gpu: Gpu | None, layers: Sequence[Layer]) -> list[str]:
    """The compute capabilities a plan runs on; `8.0+` stands for that and all newer."""
    if backend.name == "rtx" and options.capabilities is not None:
        used = {each.precision for each in layers}
        portable = next((NEEDED[t] for t in reversed(NEEDED) if t in used), PORTABLE)
        return [f"{major}.{minor}" for major, minor in options.capabilities] or [portable]
    if options.hardware_compatibility == "ampere_plus":
        return [PORTABLE]
    return [gpu.sm] if gpu is not None else []


def said(made: Mapping[str, Any], backend: Backend, layers: Sequence[Layer], size: int) -> tuple[str, str]:
    """Two lines: for whom and how large, and what computes in which precision."""
    count = len(made["profiles"])
    where = ", ".join(made["compute_capabilities"])
    first = f"{backend} for compute capability {where}, {count} profile{'s' * (count > 1)}: {size / 1e6:.1f} MB"
    products = [
        f"{number} {kind} in {precision}"
        for kind, precisions in made["layers"].items()
        for precision, number in precisions.items()
    ]
    return first, f"{len(layers)} layers" + (f": {', '.join(products)}" if products else "")
