"""Half precision: float16 weights and activations, with nodes left in float32 where values overflow.

float16 ends at 65504. With `calibration` (a `dataset`) every activation is measured on real data, and the nodes that
make or read larger values (with `headroom` to spare) stay in float32; so do operators that have no float16 kernels,
root-mean-square norms (T5, Llama), whose squares would vanish, and what is reckoned to become an integer.
Constants that stand for minus infinity in attention masks become -10000. Inputs and outputs stay float32 unless
`keep_io_types: false`. What a GPU will compute is simulated, every result rounded to float16, and compared with the
input, with padding on both sides and on the data; more than `tolerance` of difference, or an overflow, fails the build.

float16 pays on GPUs. On CPUs ONNX Runtime computes most of it in float32 between casts: half the size, no faster.

```yaml
targets:
  half:      {kind: fp16, from: fused_for_gpu, calibration: sentences}
  half_trt:  {kind: fp16, from: onnx, runtime: tensorrt, calibration: sentences}
```

For `trt-plan` start from the exported model with `runtime: tensorrt`: TensorRT knows no fused operators, and has
float16 kernels for more of the others. The converter is ONNX Runtime's, `onnxruntime.transformers.float16`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component
from modelbuild.errors import problem, suggestion
from modelbuild.kind import Context, Ref

if TYPE_CHECKING:
    from modelbuild.lib.agreement import Difference

VERSION = 2
TOOLS = {"onnx": "cpu", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()

CHECKED = 16
"""Samples on which the result is compared with its input."""


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The float32 ONNX model.")] = msgspec.field(name="from")
    calibration: Annotated[
        Ref | None, Meta(description="A dataset of real data: nodes whose values overflow on it stay in float32.")
    ] = None
    runtime: Annotated[
        Literal["cpu", "cuda", "tensorrt"], Meta(description="Where it will run: which operators have float16 there.")
    ] = "cuda"
    keep_io_types: Annotated[bool, Meta(description="Leave float32 inputs and outputs as they are.")] = True
    keep: Annotated[tuple[str, ...], Meta(description="Nodes that stay in float32, by name or pattern.")] = ()
    keep_ops: Annotated[tuple[str, ...], Meta(description="Further operators that stay in float32.")] = ()
    headroom: Annotated[
        float, Meta(ge=1, description="Keep nodes from this part of float16's range on: 2 is from 32752.")
    ] = 2.0
    limit: Annotated[int, Meta(ge=1, description="Measure on the first so many samples only.")] | None = None
    batch_size: Annotated[int, Meta(ge=1, description="Most samples measured at once.")] = 8
    tolerance: Annotated[
        float,
        Meta(gt=0, description="Largest difference to the input graph, relative to each output's largest magnitude."),
    ] = 0.02


class Made(msgspec.Struct, frozen=True):
    """A graph in float16: its file's component, its bytes, its nodes that stay in float32, and how far it is off."""

    component: Component
    size: int
    kept: tuple[str, ...]
    difference: float


def build(spec: Spec, ctx: Context) -> None:
    source = ctx.input()
    described = source.descriptor
    if described.format != "onnx":
        raise problem("`fp16` needs an ONNX model", format=described.format, hint="put a target of kind `onnx` between")
    graphs = described.components
    if len(graphs) > 1 and spec.calibration is not None:
        raise problem(
            "a model of several graphs is not measured: what its later graphs get comes from its earlier ones",
            graphs=", ".join(graphs),
            hint="leave out `calibration`, and name what overflows by `keep`",
        )
    _require_kept(spec, source)
    made = {name: _graph(spec, ctx, source, name, graph) for name, graph in graphs.items()}
    difference = max(m.difference for m in made.values())
    ctx.log(f"differs from its input by at most {difference:.1e} (tolerance {spec.tolerance:g})")
    for name in (*described.tokenizer, *described.extras):
        ctx.link(source.path / name, ctx.out / name)
    kept = sorted(node for m in made.values() for node in m.kept)
    size = float(sum(m.size for m in made.values()))
    ctx.describe(
        msgspec.structs.replace(
            described,
            precision="fp16",
            components={name: m.component for name, m in made.items()},
            settings={**described.settings, "runtime": spec.runtime, "float32_nodes": kept},
            metrics={**described.metrics, "size_bytes": size, "difference": float(f"{difference:.3g}")},
        )
    )


def _graph(spec: Spec, ctx: Context, source: Artifact, name: str, graph: Component) -> Made:
    """Convert one graph of the model into its own file."""
    from modelbuild.lib import half, half_session, onnx_files, sessions

    path = source.path / graph.file
    model = onnx_files.load(path)
    _require_float(spec, model)
    half.name_nodes(model)
    large = _large(spec, ctx, graph, model)
    operators = [*half.blocked_operators(spec.runtime), *spec.keep_ops]
    exact = (*half.norm_nodes(model), *half.counting_nodes(model))
    kept = {*_asked(spec.keep, model), *large, *exact, *half.float_nodes(model, operators)}
    total = len(model.graph.node)
    half.soften_masks(model)
    reference = sessions.open_session(path, threads=1)
    difference = _simulated(spec, ctx, graph, reference, model, kept)
    converted = half.convert(model, keep_io_types=spec.keep_io_types, operators=operators, nodes=kept)
    onnx_files.clean(converted)
    component = onnx_files.component(converted, graph.file)
    (ctx.out / graph.file).parent.mkdir(parents=True, exist_ok=True)
    files = onnx_files.save(converted, ctx.out / graph.file)
    del converted, model
    other = half_session.HalfSession(sessions.open_session(ctx.out / graph.file, threads=1))
    _require_same(spec, half_session.on_cases(reference, other, graph.inputs))
    size = sum((ctx.out / graph.file).with_name(file).stat().st_size for file in files)
    widest = f" ({len(large)} for values up to {max(large.values()):.3g})" if large else ""
    prefix = f"`{name}`: " if len(source.descriptor.components) > 1 else ""
    ctx.log(f"{prefix}{len(kept)} of {total} nodes stay in float32{widest}; {size / 1e6:.1f} MB")
    return Made(component, size, tuple(sorted(kept)), difference)


def _require_float(spec: Spec, model: Any) -> None:
    """A `ProblemError` for a graph that is quantized, fused for another runtime, or has no float32 to convert."""
    from modelbuild.lib import half, onnx_values

    quantized = sorted({n.op_type for n in model.graph.node if "Quantize" in n.op_type or "Integer" in n.op_type})
    if quantized:
        hint = "`fp16` and `int8` both start from the float32 model"
        raise problem("the model is quantized", operators=", ".join(quantized), hint=hint)
    own = sorted({n.op_type for n in model.graph.node if n.domain == "com.microsoft"})
    if spec.runtime == "tensorrt" and own:
        raise problem(
            "TensorRT does not know ONNX Runtime's fused operators",
            operators=", ".join(own),
            hint="take `from` the exported model and not the fused one",
        )
    if half.FLOAT not in onnx_values.element_types(model).values():
        raise problem("the model has nothing in float32", hint="`fp16` starts from a float32 model")


def _require_kept(spec: Spec, source: Artifact) -> None:
    """A `ProblemError` for a pattern in `keep` that fits no node of any graph."""
    from modelbuild.lib import half, onnx_files

    if not spec.keep:
        return
    names: list[str] = []
    for graph in source.descriptor.components.values():
        model = onnx_files.load(source.path / graph.file, weights=False)
        half.name_nodes(model)
        names += [n.name for n in model.graph.node]
    for pattern in spec.keep:
        if not any(fnmatchcase(n, pattern) for n in names):
            hint = suggestion(pattern, names) or "name nodes as the ONNX graph does; `*` stands for anything"
            raise problem(f"`keep`: no node is called `{pattern}`", nodes=len(names), hint=hint)


def _asked(patterns: Sequence[str], model: Any) -> set[str]:
    """The nodes that `keep` names."""
    return {n.name for n in model.graph.node if any(fnmatchcase(n.name, p) for p in patterns)}


def _large(spec: Spec, ctx: Context, graph: Component, model: Any) -> dict[str, float]:
    """Nodes with values too large for float16, from the calibration data, else from the constants alone."""
    from modelbuild.lib import calibration, half_range, samples

    if spec.calibration is None:
        return half_range.large(model, {}, spec.headroom).nodes
    data = samples.of(ctx.input("calibration"))
    inputs = {t.name: (t.dtype, t.shape) for t in graph.inputs}
    calibration.require_inputs({name: dtype for name, (dtype, _) in inputs.items()}, data)
    total = min(len(data), spec.limit or len(data))
    batches = calibration.batches(data, inputs, spec.batch_size, spec.limit)
    seen = half_range.observed(model, batches, lambda done: ctx.progress(done, total, "measure"))
    ctx.log(f"measured {len(seen)} activations on {total} samples: the largest is {max(seen.values(), default=0):.3g}")
    return half_range.large(model, seen, spec.headroom).nodes


def _simulated(spec: Spec, ctx: Context, graph: Component, reference: Any, model: Any, kept: Collection[str]) -> float:
    """The largest relative difference to the input graph of what a GPU will compute, on made-up and on real inputs."""
    from modelbuild.lib import half_session, half_simulation, onnx_files, sessions

    path = ctx.scratch / "simulated.onnx"
    ctx.progress(0, 1, "simulate float16")
    onnx_files.save(half_simulation.simulated(model, kept), path)
    simulated = half_session.HalfSession(sessions.open_session(path, threads=1))
    worst = half_session.on_cases(reference, simulated, graph.inputs)
    if spec.calibration is not None:
        on_data = half_session.on_samples(reference, simulated, _samples(spec, ctx, graph))
        worst = max(worst, on_data, key=lambda each: each.relative)
    _require_same(spec, worst)
    ctx.progress(1, 1, "simulate float16")
    return worst.relative


def _require_same(spec: Spec, worst: Difference) -> None:
    """A `ProblemError` when the difference is above the tolerance."""
    if worst.relative <= spec.tolerance:
        return
    hint = "keep sensitive nodes in float32 by `keep`, or allow more by `tolerance`"
    if spec.calibration is None:
        hint = "give `calibration`, so that nodes whose values overflow are found and kept in float32"
    raise problem(
        "the float16 model does not compute what its input does",
        output=worst.output,
        at=worst.case,
        relative_difference=f"{worst.relative:.2g}",
        tolerance=spec.tolerance,
        hint=hint,
    )


def _samples(spec: Spec, ctx: Context, graph: Component) -> list[dict[str, Any]]:
    """Some calibration samples, one at a time."""
    from modelbuild.lib import calibration, samples

    data = samples.of(ctx.input("calibration"))
    inputs = {t.name: (t.dtype, t.shape) for t in graph.inputs}
    every = max(1, min(len(data), spec.limit or len(data)) // CHECKED)
    singles = calibration.batches(data, inputs, 1, spec.limit)
    return [feeds for number, (_, feeds) in enumerate(singles) if number % every == 0][:CHECKED]
