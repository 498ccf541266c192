"""The builder's configuration: a plan's options as Polygraphy's config loaders take them, for either TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem
from modelbuild.lib.plan_backend import TITLES, Backend
from modelbuild.lib.plan_checks import Capability
from modelbuild.lib.plan_profiles import Shapes

CURRENT = "current"
"""In place of compute capabilities: that of the GPU at hand."""
MIB = 1 << 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to build, by Polygraphy's names where it has one.

    `workspace_mib` caps the memory that layers may use while they run; it is always set, because TensorRT's own
    default is the machine's. `capabilities`: None is the GPU at hand, empty TensorRT-RTX's default.
    """

    workspace_mib: int
    optimization_level: int | None = None
    tf32: bool = True
    sparse_weights: bool = False
    profiling_verbosity: str = "detailed"
    capabilities: tuple[Capability, ...] | None = ()
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    refittable: bool = False
    strip_plan: bool = False
    weight_streaming: bool = False
    max_aux_streams: int | None = None
    timing_cache: Path | None = None


def loader(backend: Backend, options: Options, profiles: Sequence[Mapping[str, Shapes]], monitor: Any) -> Any:
    """The Polygraphy loader (builder, network) -> IBuilderConfig."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    trt = backend.trt
    shapes = [Profile() for _ in profiles]
    for made, given in zip(shapes, profiles, strict=True):
        for name, each in given.items():
            made.add(name, each.min, each.opt, each.max)
    common: dict[str, Any] = {
        "profiles": shapes,
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: options.workspace_mib * MIB},
        "profiling_verbosity": getattr(trt.ProfilingVerbosity, options.profiling_verbosity.upper()),
        "sparse_weights": options.sparse_weights,
        "builder_optimization_level": options.optimization_level,
        "max_aux_streams": options.max_aux_streams,
        "refittable": options.refittable,
        "strip_plan": options.strip_plan,
        "progress_monitor": monitor,
    }
    if backend.name == "rtx":
        created = _rtx(backend, options, common)
    else:
        created = CreateConfig(tf32=options.tf32, **_tensorrt(trt, options), **common)

    def switch_tf32(builder: Any, network: Any, config: Any) -> None:
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)

    return PostprocessConfig(created, switch_tf32)


def _rtx(backend: Backend, options: Options, common: dict[str, Any]) -> Any:
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    if options.capabilities is None:
        return CreateConfigRTX(use_gpu=True, **common)
    require_known(backend, options.capabilities)
    return CreateConfigRTX(compute_capabilities=list(options.capabilities) or None, **common)


def require_known(backend: Backend, capabilities: Sequence[Capability]) -> None:
    """A `ProblemError` for a compute capability that this TensorRT-RTX does not compile for."""
    names = getattr(backend.trt.ComputeCapability, "__members__", {})
    known = [n.removeprefix("SM") for n in names if n.startswith("SM")]
    for major, minor in capabilities:
        if f"{major}{minor}" not in known:
            raise problem(
                f"{TITLES[backend.name]} {backend.version} does not compile for compute capability {major}.{minor}",
                supported=", ".join(f"{k[:-1]}.{k[-1]}" for k in known),
                hint="leave `compute_capabilities` out for its default, 8.0 and newer, or use `backend: tensorrt`",
            )


def _tensorrt(trt: Any, options: Options) -> dict[str, Any]:
    """What only TensorRT takes. Nothing here was removed between versions 10 and 11."""
    level = options.hardware_compatibility.upper()
    given: dict[str, Any] = {
        "version_compatible": options.version_compatible,
        "exclude_lean_runtime": options.exclude_lean_runtime,
        "weight_streaming": options.weight_streaming,
        "load_timing_cache": str(options.timing_cache) if options.timing_cache else None,
    }
    if level != "NONE":
        if level not in trt.HardwareCompatibilityLevel.__members__:
            raise problem(
                f"TensorRT {trt.__version__} has no hardware compatibility `{options.hardware_compatibility}`",
                hint="it came with TensorRT 10: update, or leave `hardware_compatibility` out",
            )
        given["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    return given
