"""A TensorRT plan (engine) of an ONNX model: fp32, fp16 or int8 QDQ, with dynamic shapes.

`backend: rtx` compiles with TensorRT-RTX, which needs no GPU: the plan is portable between GPUs, and is finished on
the GPU when it is loaded. `backend: tensorrt` tunes with TensorRT for the GPU at hand, and needs it. `auto` takes
TensorRT where it and a GPU are there, else TensorRT-RTX. Polygraphy drives both.

Precision comes from the graph, which is strongly typed in both: put `fp16` or `int8` with `runtime: tensorrt` before,
from the exported model and not from the fused one, because TensorRT does not know ONNX Runtime's own operators.
What cannot be compiled is refused before the build, with the node's name.

```yaml
targets:
  int8_qdq: {kind: int8, from: onnx, runtime: tensorrt, calibration: sentences}
  int8_trt:
    kind: trt-plan
    from: int8_qdq
    backend: rtx
    profiles: [{batch: [1, 8, 32], sequence: [8, 128, 512]}]
    compute_capabilities: ["8.6", "8.9"]
```

A profile gives the least, the best and the most of each dynamic dimension by its name in the descriptor, or whole
shapes by input: `input_ids: {min: [1, 8], opt: [8, 128], max: [32, 512]}`. Several profiles make one plan with
several tunings. One plan for each GPU is a matrix: `matrix: {compute_capabilities: ["8.6", "8.9"]}`.

The descriptor has inputs and outputs, `backend`, `backend_version`, `compute_capabilities`, `profiles`, and how many
products compute in which precision (`layers`); `layers.json` lists every layer of the network. With TensorRT there are
also the engine's own layers (`engine.json`) and the memory it needs. Two builds of one plan need not be equal byte
for byte, see the explanation "plans".

| option | trtexec |
|---|---|
| `profiles` | `--minShapes`, `--optShapes`, `--maxShapes`, `--profile` |
| `workspace` | `--memPoolSize=workspace:` |
| `optimization_level`, `tf32`, `sparsity` | `--builderOptimizationLevel`, `--noTF32`, `--sparsity=enable` |
| `timing_cache` | `--timingCacheFile` |
| `hardware_compatibility`, `version_compatible` | `--hardwareCompatibilityLevel`, `--versionCompatible` |
| `exclude_lean_runtime`, `strip_plan`, `refittable` | `--excludeLeanRuntime`, `--stripWeights`, `--refit` |
| `weight_streaming`, `max_aux_streams` | `--allowWeightStreaming`, `--maxAuxStreams` |
| `profiling_verbosity`, `plugins` | `--profilingVerbosity`, `--dynamicPlugins` |
| `compute_capabilities` | `--computeCapabilities` (of `tensorrt_rtx`) |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.errors import ProblemError, problem
from modelbuild.kind import Anywhere, Context, Files, Ref, Source, SpecError
from modelbuild.lib import plan_backend
from modelbuild.lib.plan_profiles import Shapes, wrong_order

if TYPE_CHECKING:
    from modelbuild.lib.gpu import Gpu
    from modelbuild.lib.plan_backend import Backend
    from modelbuild.lib.plan_config import Options
    from modelbuild.lib.plan_log import Heard

    Profiles = tuple[dict[str, Shapes], ...]

VERSION = 1
TOOLS = {"tensorrt-rtx": "rtx", "tensorrt": "trt", "polygraphy": "", "onnx": "cpu"}
_HELP = "use `backend: rtx` with `compute_capabilities`, which needs no GPU, or build it on a machine with a GPU"
HARDWARE = {"gpu": _HELP, "sm": _HELP, "nvidia": _HELP, "platform": _HELP}
RESOURCES = ("gpu",)

PLAN, LAYERS, ENGINE = "model.plan", "layers.json", "engine.json"
WORKSPACE_MIB = 4096
MOST_WARNINGS = 5
ONLY_TENSORRT = {
    "hardware_compatibility": "none",
    "version_compatible": False,
    "exclude_lean_runtime": False,
    "refittable": False,
    "strip_plan": False,
    "weight_streaming": False,
}
"""Options that TensorRT-RTX 1.7 does not have, or fails on, and their defaults."""


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The ONNX model to compile.")] = msgspec.field(name="from")
    backend: Annotated[
        Literal["auto", "rtx", "tensorrt"], Meta(description="Who compiles: TensorRT-RTX or TensorRT.")
    ] = "auto"
    profiles: Annotated[
        tuple[dict[str, int | tuple[int, int, int] | Shapes], ...],
        Meta(description="Least, best and most of each dynamic dimension, or of each input's shape."),
    ] = ()
    compute_capabilities: Annotated[
        str | tuple[str, ...],
        Meta(
            description='GPUs a TensorRT-RTX plan is for, such as `"8.9"`, or `current`; by default 8.0 and all newer.'
        ),
    ] = ()
    workspace: Annotated[int, Meta(ge=1, description="Memory that layers may use while they run, in MiB.")] = (
        WORKSPACE_MIB
    )
    optimization_level: Annotated[
        Annotated[int, Meta(ge=0, le=5)] | None,
        Meta(description="How long to search, 0 to 5; TensorRT's default is 3."),
    ] = None
    tf32: Annotated[bool, Meta(description="Round the factors of fp32 products to 10 bits of mantissa.")] = True
    sparsity: Annotated[bool, Meta(description="Use 2:4 sparse kernels where the weights are.")] = False
    timing_cache: Annotated[
        bool, Meta(description="Keep TensorRT's timings per version and GPU, for faster builds.")
    ] = True
    hardware_compatibility: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        Meta(description="Which other GPUs a TensorRT plan runs on."),
    ] = "none"
    version_compatible: Annotated[bool, Meta(description="Run on later TensorRT versions too.")] = False
    exclude_lean_runtime: Annotated[bool, Meta(description="Leave the runtime out of such a plan.")] = False
    refittable: Annotated[bool, Meta(description="Let weights be exchanged later.")] = False
    strip_plan: Annotated[bool, Meta(description="Leave the weights out; they are refitted on loading.")] = False
    weight_streaming: Annotated[bool, Meta(description="Let weights stay in host memory while it runs.")] = False
    max_aux_streams: Annotated[int, Meta(ge=0, description="Most CUDA streams besides the caller's.")] | None = None
    profiling_verbosity: Annotated[
        Literal["layer_names_only", "detailed", "none"], Meta(description="What a plan tells of its layers.")
    ] = "detailed"
    plugins: (
        Annotated[
            Source,
            Files(("*.so",)),
            Anywhere(),
            Meta(description="A plugin library, or a folder of them; it is loaded and run."),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        for number, profile in enumerate(self.profiles, start=1):
            wrong = wrong_order(profile)
            if wrong:
                raise SpecError(f"profile {number}: {wrong}", field="profiles")
        if self.backend == "rtx":
            for field, default in ONLY_TENSORRT.items():
                if getattr(self, field) != default:
                    hint = "leave it out, or use `backend: tensorrt`"
                    raise SpecError(f"TensorRT-RTX has no `{field}`", field=field, hint=hint)
        for each in _listed(self):
            if not re.fullmatch(r"\d+\.\d|current", each):
                hint = 'write it as "8.9", or `current` for that of the GPU at hand'
                raise SpecError(f"`{each}` is no compute capability", field="compute_capabilities", hint=hint)
        if self.backend == "tensorrt" and self.compute_capabilities:
            hint = "leave it out: TensorRT compiles for the GPU it runs on; `hardware_compatibility` widens that"
            raise SpecError("`compute_capabilities` is for TensorRT-RTX", field="compute_capabilities", hint=hint)
        if "current" in _listed(self) and len(_listed(self)) > 1:
            raise SpecError("`current` stands alone in `compute_capabilities`", field="compute_capabilities")
        if self.exclude_lean_runtime and not self.version_compatible:
            raise SpecError("`exclude_lean_runtime` goes with `version_compatible: true`", field="exclude_lean_runtime")


def tools(spec: Spec) -> Collection[str]:
    """The one TensorRT that compiles, and what reads the model."""
    return {"tensorrt-rtx" if _backend(spec) == "rtx" else "tensorrt", "polygraphy", "onnx"}


def hardware(spec: Spec) -> Mapping[str, str]:
    """A TensorRT-RTX plan is the same from every machine; a TensorRT plan is its GPU's, or as compatible as asked."""
    if _backend(spec) == "rtx":
        return {"sm": HARDWARE["sm"]} if "current" in _listed(spec) else {}
    names = {
        "none": ("gpu", "sm", "platform"),
        "same_compute_capability": ("sm", "platform"),
        "ampere_plus": ("nvidia", "platform"),
    }
    return {name: HARDWARE[name] for name in names[spec.hardware_compatibility]}


def resources(spec: Spec) -> Collection[str]:
    """TensorRT times kernels on the GPU; nothing else may run there meanwhile."""
    return RESOURCES if hardware(spec) else ()


def _backend(spec: Spec) -> plan_backend.Name:
    return plan_backend.resolve("rtx" if spec.compute_capabilities else spec.backend)


def _listed(spec: Spec) -> tuple[str, ...]:
    given = spec.compute_capabilities
    return (given,) if isinstance(given, str) else given


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import gpu, plan_descriptor, plan_log, plan_network, plan_profiles

    source = ctx.input()
    if source.descriptor.format != "onnx":
        raise problem(
            "`trt-plan` needs an ONNX model",
            format=source.descriptor.format,
            hint="put a target of kind `onnx` between",
        )
    model = source.descriptor.model()
    profiles = plan_profiles.expand(spec.profiles, model.inputs)
    _require_compilable(spec, source.model_path)
    backend = plan_backend.load(_backend(spec))
    device = gpu.first() if hardware(spec) else None
    options = _options(spec, backend, device)
    with plan_log.listening() as heard:
        plugins = ctx.source_files("plugins") if spec.plugins else ()
        network = plan_network.parse(source.model_path, heard, plugins=plugins)
        layers = plan_network.layers(network[1])
        component = plan_network.component(network[1], model, PLAN)
        size = _compile(ctx, backend, options, profiles, network, heard)
        memory = _inspected(ctx, backend)
    for warning in heard.warnings[:MOST_WARNINGS]:
        ctx.log(f"{plan_backend.TITLES[backend.name]} warns: {warning[:200]}")
    made = plan_descriptor.settings(backend, options, profiles, layers, device)
    for line in plan_descriptor.said(made, backend, layers, size):
        ctx.log(line)
    (ctx.out / LAYERS).write_bytes(msgspec.json.format(msgspec.json.encode(layers), indent=1) + b"\n")
    described = source.descriptor
    for name in (*described.tokenizer, *described.extras):
        ctx.link(source.path / name, ctx.out / name)
    ctx.describe(
        msgspec.structs.replace(
            described,
            format="trt-plan",
            components={next(iter(described.components)): component},
            settings={**described.settings, **made},
            metrics={**described.metrics, "size_bytes": float(size), "network_layers": float(len(layers)), **memory},
        )
    )


def _require_compilable(spec: Spec, path: Path) -> None:
    """A `ProblemError` with everything in the graph that cannot become this plan."""
    from modelbuild.lib import onnx_files, plan_checks

    model = onnx_files.load(path, weights=False)
    found = plan_checks.problems(model, _capabilities(spec) or (), plugins=spec.plugins is not None)
    if found:
        raise ProblemError(*found)


def _capabilities(spec: Spec) -> tuple[tuple[int, int], ...] | None:
    """The compute capabilities asked for as (major, minor), sorted; None for that of the GPU at hand."""
    if "current" in _listed(spec):
        return None
    pairs = (each.split(".") for each in _listed(spec))
    return tuple(sorted({(int(major), int(minor)) for major, minor in pairs}))


def _options(spec: Spec, backend: Backend, device: Gpu | None) -> Options:
    from modelbuild.lib import plan_config, plan_timing

    capabilities = _capabilities(spec)
    if backend.name == "rtx":
        plan_config.require_known(backend, capabilities or ())
    times = spec.timing_cache and backend.name == "tensorrt" and device is not None
    return plan_config.Options(
        workspace_mib=spec.workspace,
        optimization_level=spec.optimization_level,
        tf32=spec.tf32,
        sparse_weights=spec.sparsity,
        profiling_verbosity=spec.profiling_verbosity,
        capabilities=capabilities,
        hardware_compatibility=spec.hardware_compatibility,
        version_compatible=spec.version_compatible,
        exclude_lean_runtime=spec.exclude_lean_runtime,
        refittable=spec.refittable,
        strip_plan=spec.strip_plan,
        weight_streaming=spec.weight_streaming,
        max_aux_streams=spec.max_aux_streams,
        timing_cache=plan_timing.path(backend.version, device.name) if times and device else None,
    )


def _compile(
    ctx: Context, backend: Backend, options: Options, profiles: Profiles, network: tuple[Any, Any, Any], heard: Heard
) -> int:
    """Write the plan; its size in bytes. A `ProblemError` with TensorRT's own words when it cannot be built."""
    from polygraphy.backend.trt import EngineBytesFromNetwork

    from modelbuild.lib import plan_config, plan_failures, plan_log, plan_progress, plan_timing

    monitor = plan_progress.monitor(backend.trt, ctx.progress)
    cache = options.timing_cache
    if cache is not None:
        ctx.log(plan_timing.told(cache))
    try:
        config = plan_config.loader(backend, options, profiles, monitor)
        serialized = EngineBytesFromNetwork(network, config, save_timing_cache=str(cache) if cache else None)()
    except Exception as e:
        cause = plan_log.failure(heard, e)
        if cause is None:
            raise
        raise ProblemError(plan_failures.problem_of(cause, backend)) from e
    (ctx.out / PLAN).write_bytes(serialized)
    return (ctx.out / PLAN).stat().st_size


def _inspected(ctx: Context, backend: Backend) -> dict[str, float]:
    """With TensorRT, which had a GPU to build on: the engine's own layers beside the plan, and its memory figures."""
    if backend.name != "tensorrt":
        return {}
    from modelbuild.lib import plan_inspect

    seen = plan_inspect.inspect(backend.trt, plan_inspect.load((ctx.out / PLAN).read_bytes()))
    (ctx.out / ENGINE).write_bytes(msgspec.json.format(msgspec.json.encode(seen.layers), indent=1) + b"\n")
    ctx.log(f"{len(seen.layers)} layers after fusion, {seen.device_memory_bytes / 1e6:.1f} MB of device memory")
    return {"engine_layers": float(len(seen.layers)), "device_memory_bytes": float(seen.device_memory_bytes)}
