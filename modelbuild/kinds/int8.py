"""8-bit weights and activations: static quantization calibrated on data, or dynamic without any.

With `calibration` (a `dataset`) the quantization is static: activation ranges are measured on that data and written
into the graph as QuantizeLinear and DequantizeLinear (QDQ). Without it, it is dynamic: ranges are taken anew at every
run, so a text's result depends on what shares its batch. A model of several graphs (an encoder with its decoder) is
quantized dynamically.

The defaults are not ONNX Runtime's, which ruin transformers (see the explanation "int8"). Only the inputs of matrix
products with constant weights become 8 bits, never the residual stream or attention's own products; weights have a
scale per channel; outliers of activations are moved into the weights (`smooth`); embedding tables are int8 by row;
and the mean error of each product is taken out of the bias behind it.

```yaml
targets:
  sentences: {kind: dataset, path: data/sentences.jsonl, tokenizer: checkpoint}
  int8:      {kind: int8, from: fused, calibration: sentences}
  careful:   {kind: int8, from: fused, calibration: sentences, exclude: ["*layer.0/output/dense*"]}
  closer:    {kind: int8, from: fused, calibration: sentences, least_cosine: 0.999}
  dynamic:   {kind: int8, from: fused}
  for_trt:   {kind: int8, from: onnx, calibration: sentences, runtime: tensorrt}
```

Some 128 samples of real data are enough, long ones among them; synthetic sentences calibrate worse. Calibration runs
the float model once over the samples, those of one length together and without padding; its memory does not grow with
their number.

Which products cost the most is measured with `least_cosine` or `sensitivity`: each is left in floats by itself, and the
outputs are compared again. `sensitivity.json` has them all, the log the dearest, with the `exclude` that spares them.
With `least_cosine` the dearest stay in floats until the mean cosine to the float model is at least that, on calibration
data; where that cannot be held, the build fails.

| option | ONNX Runtime's quantizer |
|---|---|
| `calibrate`, `percentile` | `calibrate_method`, `CalibPercentile` |
| `moving_average` | `CalibMovingAverage`, `CalibMovingAverageConstant` |
| `activations`, `weights` | `activation_type`, `weight_type` |
| `activation_symmetric`, `weight_symmetric` | `ActivationSymmetric`, `WeightSymmetric` |
| `per_channel`, `reduce_range` | `per_channel`, `reduce_range` |
| `ops`, `nodes`, `exclude` | `op_types_to_quantize`, `nodes_to_quantize`, `nodes_to_exclude` |
| `smooth` | `SmoothQuant`, `SmoothQuantAlpha` |
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component
from modelbuild.errors import problem
from modelbuild.kind import Context, Ref, SpecError

if TYPE_CHECKING:
    from modelbuild.lib.onnx_graph import Graph
    from modelbuild.lib.samples import Samples
    from modelbuild.lib.sensitivity import Cost, Found

VERSION = 2
TOOLS = {"onnx": "cpu", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul")
LOWEST_COSINE = 0.5
"""Below this, on its own calibration data, a model is not a model any more."""
CHECKED = 16
"""Samples on which the result is compared with the float model."""
TABLE = "sensitivity.json"
TOLD = 5
"""Of the dearest products, how many are told."""


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The ONNX model to quantize, fused or not.")] = msgspec.field(name="from")
    calibration: Annotated[Ref | None, Meta(description="A dataset of real data; makes the quantization static.")] = (
        None
    )
    mode: Annotated[
        Literal["static", "dynamic"] | None,
        Meta(description="Where activation ranges come from; by default static with `calibration`, else dynamic."),
    ] = None
    runtime: Annotated[
        Literal["cpu", "tensorrt"],
        Meta(description="`tensorrt` writes symmetric int8 throughout, from an unfused graph."),
    ] = "cpu"
    calibrate: Annotated[
        Literal["minmax", "percentile", "entropy"], Meta(description="How a range follows from the data.")
    ] = "minmax"
    percentile: (
        Annotated[float, Meta(gt=50, le=100, description="Per cent of values inside the range; 99.999 if not given.")]
        | None
    ) = None
    moving_average: (
        Annotated[
            float, Meta(gt=0, le=1, description="Average `minmax` ranges over batches, the new one by this weight.")
        ]
        | None
    ) = None
    smooth: Annotated[
        float | Literal["auto"] | None,
        Meta(description="SmoothQuant's alpha (0 to 1); `auto` chooses it for each product; null switches it off."),
    ] = "auto"
    per_channel: Annotated[bool, Meta(description="A scale for each output channel of a weight.")] = True
    activations: Annotated[
        Literal["uint8", "int8"] | None, Meta(description="By default uint8 for cpu, int8 for tensorrt.")
    ] = None
    weights: Annotated[Literal["int8", "uint8"], Meta(description="Type of the weights.")] = "int8"
    activation_symmetric: Annotated[
        bool | None, Meta(description="Zero point in the middle; by default only for tensorrt.")
    ] = None
    weight_symmetric: Annotated[bool, Meta(description="Zero point in the middle.")] = True
    reduce_range: Annotated[
        bool, Meta(description="7-bit weights, for CPUs without VNNI, whose 8-bit products overflow.")
    ] = False
    ops: Annotated[
        tuple[Literal["MatMul", "Gemm", "Conv", "Attention"], ...],
        Meta(min_length=1, description="Operators to quantize."),
    ] = ("MatMul", "Gemm", "Conv", "Attention")
    nodes: Annotated[tuple[str, ...], Meta(description="Only these nodes, by name or pattern.")] = ()
    exclude: Annotated[tuple[str, ...], Meta(description="Nodes that stay in floats, by name or pattern.")] = ()
    embeddings: Annotated[
        bool | None, Meta(description="int8 embedding tables, with a scale per row; by default for cpu.")
    ] = None
    correct_bias: Annotated[bool, Meta(description="Take each product's mean error out of the bias behind it.")] = True
    outputs: Annotated[bool, Meta(description="Quantize the results of products too; costs accuracy.")] = False
    least_cosine: (
        Annotated[
            float,
            Meta(
                gt=0, lt=1, description="Leave the dearest products in floats until the outputs' mean cosine is this."
            ),
        ]
        | None
    ) = None
    sensitivity: Annotated[bool, Meta(description="Measure what each product costs, whatever the cosine is.")] = False
    batch_size: Annotated[int, Meta(ge=1, description="Most samples calibrated at once, all of one length.")] = 8
    limit: Annotated[int, Meta(ge=1, description="Calibrate on the first so many samples only.")] | None = None

    @property
    def weighs(self) -> bool:
        """Whether what each product costs is measured."""
        return self.sensitivity or self.least_cosine is not None

    def __post_init__(self) -> None:
        static = self.mode == "static" or (self.mode is None and self.calibration is not None)
        if static and self.calibration is None:
            raise SpecError("`mode: static` needs `calibration`", field="mode", hint="name a target of kind `dataset`")
        if not static and self.calibration is not None:
            raise SpecError(
                "`mode: dynamic` takes no `calibration`", field="calibration", hint="leave out one of the two"
            )
        if not static:
            self._require_dynamic()
        if self.percentile is not None and self.calibrate != "percentile":
            raise SpecError("`percentile` goes with `calibrate: percentile`", field="percentile")
        if self.moving_average is not None and self.calibrate != "minmax":
            raise SpecError("`moving_average` goes with `calibrate: minmax`", field="moving_average")
        if isinstance(self.smooth, float | int) and not 0 <= self.smooth <= 1:
            raise SpecError(f"`smooth: {self.smooth:g}` is not between 0 and 1", field="smooth")
        if self.runtime == "tensorrt":
            self._require_tensorrt()

    def _require_dynamic(self) -> None:
        given = {
            "calibrate": self.calibrate != "minmax",
            "percentile": self.percentile is not None,
            "moving_average": self.moving_average is not None,
            "smooth": self.smooth not in ("auto", None),
            "activations": self.activations == "int8",
            "activation_symmetric": bool(self.activation_symmetric),
            "outputs": self.outputs,
            "limit": self.limit is not None,
        }
        for field, is_given in given.items():
            if is_given:
                hint = "give `calibration`, a target of kind `dataset`"
                raise SpecError(f"`{field}` needs static quantization", field=field, hint=hint)
        if self.runtime == "tensorrt":
            raise SpecError("TensorRT has no dynamic quantization", field="runtime", hint="give `calibration`")

    def _require_tensorrt(self) -> None:
        wrong = {
            "activations": self.activations == "uint8",
            "weights": self.weights == "uint8",
            "activation_symmetric": self.activation_symmetric is False,
            "weight_symmetric": not self.weight_symmetric,
            "embeddings": bool(self.embeddings),
        }
        for field, is_wrong in wrong.items():
            if is_wrong:
                hint = f"leave `{field}` out, or say `runtime: cpu`"
                raise SpecError("TensorRT takes only symmetric int8 weights and activations", field=field, hint=hint)


class Made(msgspec.Struct, frozen=True):
    """A graph that was quantized: its file's component, its bytes, and its outputs' cosines to the float graph's."""

    component: Component
    size: int
    mean: float
    worst: float
    costs: tuple[Cost, ...] = ()
    """What each product costs, the dearest first, where that was asked for."""
    spared: int = 0
    """How many of them stay in floats."""


def build(spec: Spec, ctx: Context) -> None:
    source = ctx.input()
    described = source.descriptor
    if described.format != "onnx":
        raise problem("`int8` needs an ONNX model", format=described.format, hint="put a target of kind `onnx` between")
    graphs = described.components
    if len(graphs) > 1 and spec.calibration is not None:
        raise problem(
            "a model of several graphs is not calibrated: what its later graphs get comes from its earlier ones",
            graphs=", ".join(graphs),
            hint="leave out `calibration`: ranges are then taken at every run",
        )
    if len(graphs) > 1:
        _require_matched(spec, source)
    made = {name: _graph(spec, ctx, source, name, graph) for name, graph in graphs.items()}
    mean, worst = sum(m.mean for m in made.values()) / len(made), min(m.worst for m in made.values())
    ctx.log(f"outputs against the float model: cosine {mean:.4f}, worst {worst:.4f}")
    extras = tuple(name for name in described.extras if name != TABLE)
    for name in (*described.tokenizer, *extras):
        ctx.link(source.path / name, ctx.out / name)
    if spec.weighs:
        rows = {
            name: [{**msgspec.to_builtins(c), "in_floats": i < m.spared} for i, c in enumerate(m.costs)]
            for name, m in made.items()
        }
        (ctx.out / TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
        extras = (*extras, TABLE)
    ctx.describe(
        msgspec.structs.replace(
            described,
            precision="int8",
            extras=extras,
            components={name: m.component for name, m in made.items()},
            metrics={
                **described.metrics,
                "cosine": round(mean, 6),
                "cosine_worst": round(worst, 6),
                "size_bytes": float(sum(m.size for m in made.values())),
            },
        )
    )


def _graph(spec: Spec, ctx: Context, source: Artifact, name: str, component: Component) -> Made:
    """Quantize one graph of the model into its own file, sparing what has to be spared."""
    if not spec.weighs:
        return _quantized(spec, ctx, source, name, component, [])
    costs: list[Cost] = []
    made = _quantized(spec, ctx, source, name, component, costs)
    least, count = spec.least_cosine, 0
    while least is not None and made.mean < least:
        count = max(count + 1, _to_spare(made, costs, least) if not count else 0)
        if count >= len(costs):
            raise problem(
                f"`least_cosine: {least}` cannot be held",
                reached=f"{made.mean:.5f}, with all but one of {len(costs)} products in floats",
                hint="calibrate on more or better data, or leave embedding tables in floats: `embeddings: false`",
            )
        spared = tuple(glob.escape(cost.node) for cost in costs[:count])
        spelled = msgspec.structs.replace(spec, exclude=(*spec.exclude, *spared), least_cosine=None, sensitivity=False)
        made = _quantized(spelled, ctx, source, name, component, [])
    _tell_costs(ctx, costs, count)
    return msgspec.structs.replace(made, costs=tuple(costs), spared=count)


def _to_spare(made: Made, costs: Sequence[Cost], least: float) -> int:
    from modelbuild.lib import sensitivity

    return sensitivity.to_spare(made.mean, costs, least)


def _tell_costs(ctx: Context, costs: Sequence[Cost], spared: int) -> None:
    """The dearest products, and which of them stay in floats."""
    for place, cost in enumerate(costs[: max(spared, TOLD)]):
        stays = "; stays in floats" if place < spared else ""
        ctx.log(f"`{cost.node}` costs {cost.cosine:.5f} of cosine{stays}")
    if not spared:
        names = ", ".join(f'"{cost.node}"' for cost in costs[:TOLD] if cost.cosine > 0)
        ctx.log(f"to spare them: `exclude: [{names}]`" if names else "no product costs anything")


def _quantized(spec: Spec, ctx: Context, source: Artifact, name: str, component: Component, costs: list[Cost]) -> Made:
    """Quantize one graph into its file; what each product costs goes into `costs` where that is asked for."""
    from modelbuild.lib import int8_tables, onnx_files, quantizable, residuals, sensitivity
    from modelbuild.lib.onnx_graph import Graph

    model = onnx_files.load(source.path / component.file)
    _require_quantizable(spec, model)
    graph = Graph(model)
    del model
    before = sum(a.nbytes for a in graph.constants.values())
    quantizable.name_nodes(graph)
    quantizable.fold_views(graph)
    chosen = _chosen(spec, graph, alone=len(source.descriptor.components) == 1)
    names = [node.name for node in graph.nodes if node in chosen]
    if spec.runtime == "cpu":
        residuals.keep_apart(graph.nodes, graph.constants)
    found, write, references = _prepared(spec, ctx, component, graph, chosen)
    tables: list[str] = []

    def finish(graph: Graph, found: Found) -> None:
        write(graph, found)
        if spec.embeddings or (spec.embeddings is None and spec.runtime == "cpu"):
            tables[:] = int8_tables.quantize(graph)
        graph.prune()

    if spec.weighs:
        total = len(found)
        costs += sensitivity.costs(
            graph, found, names, finish, references, lambda done: ctx.progress(done, total, "weigh products")
        )[1]
    finish(graph, found)
    kept = sum(a.nbytes for a in graph.constants.values() if a.dtype == "float32")
    quantized = graph.model()
    onnx_files.clean(quantized)
    made = onnx_files.component(quantized, component.file)
    graph.constants.clear()
    path = ctx.out / component.file
    path.parent.mkdir(parents=True, exist_ok=True)
    files = onnx_files.save(quantized, path)
    del quantized
    size = sum(path.with_name(file).stat().st_size for file in files)
    prefix = f"`{name}`: " if len(source.descriptor.components) > 1 else ""
    said = f"{len(found)} products and {len(tables)} embedding tables in int8"
    ctx.log(f"{prefix}{said}: {_size(size)}, was {_size(before)} ({_size(kept)} stay in floats)")
    mean, worst = _checked(path, references)
    return Made(made, size, mean, worst)


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _require_quantizable(spec: Spec, model: Any) -> None:
    """A `ProblemError` for graphs that are quantized already, too old for QDQ, or of no use to the runtime."""
    from modelbuild.lib import onnx_files

    done = sorted({n.op_type for n in model.graph.node if n.op_type in QUANTIZED or n.op_type.startswith("QLinear")})
    if done:
        raise problem("the model is already quantized", operators=", ".join(done), hint="take `from` the float model")
    own = sorted({n.op_type for n in model.graph.node if n.domain == "com.microsoft"})
    if spec.runtime == "tensorrt" and own:
        raise problem(
            "TensorRT does not know ONNX Runtime's fused operators",
            operators=", ".join(own),
            hint="take `from` the exported model and not the fused one",
        )
    version = onnx_files.opsets(model).get("ai.onnx", 0)
    if version < 13:
        raise problem(f"opset {version} has no scales per channel", needed="13 or newer", hint="export it again")


def _require_matched(spec: Spec, source: Artifact) -> None:
    """A `ProblemError` for a pattern that no graph has a node for."""
    from modelbuild.lib import onnx_files, quantizable
    from modelbuild.lib.onnx_graph import Graph

    names: list[str] = []
    for component in source.descriptor.components.values():
        graph = Graph(onnx_files.load(source.path / component.file))
        quantizable.name_nodes(graph)
        names += [node.name for node in quantizable.candidates(graph)]
    quantizable.require_matched(names, nodes=spec.nodes, exclude=spec.exclude)


def _chosen(spec: Spec, graph: Graph, *, alone: bool) -> list[Any]:
    """The nodes to quantize; a `ProblemError` when there are none in a model's only graph."""
    from modelbuild.lib import quantizable

    found = quantizable.candidates(graph)
    static = spec.calibration is not None
    if alone:
        if not found:
            raise problem(
                "the model has nothing to quantize",
                looked_for=f"{', '.join(quantizable.OPS)} with a constant float32 weight",
                hint="int8 starts from a float32 model",
            )
        quantizable.require_matched([node.name for node in found], nodes=spec.nodes, exclude=spec.exclude)
    chosen = quantizable.choose(found, [op for op in spec.ops if static or op != "Conv"], spec.nodes, spec.exclude)
    if alone and not chosen:
        counts = {op: sum(n.op_type == op for n in found) for op in quantizable.OPS}
        raise problem(
            "`ops`, `nodes` and `exclude` leave nothing to quantize" if static else "nothing to quantize dynamically",
            candidates=", ".join(f"{n} {op}" for op, n in counts.items() if n),
            hint=None if static else "convolutions need `calibration`",
        )
    return chosen


def _prepared(
    spec: Spec, ctx: Context, component: Component, graph: Graph, chosen: list[Any]
) -> tuple[Found, Callable[[Graph, Found], None], list[tuple[dict[str, Any], list[Any]]]]:
    """The chosen nodes as plain products; what quantizes some of them in place; inputs and float outputs to compare."""
    from modelbuild.lib import agreement, calibration, dynamic_int8, quantizable, samples

    if spec.calibration is None:
        cases = [feeds for _, feeds in agreement.cases(component.inputs)]
        references = calibration.outputs(graph, calibration.with_real_ids(graph, cases))

        def write(graph: Graph, found: Found) -> None:
            dynamic_int8.write(
                graph,
                [each for each in found if isinstance(each, quantizable.Linear)],
                weights=spec.weights,
                symmetric=spec.weight_symmetric,
                per_channel=spec.per_channel,
                reduce_range=spec.reduce_range,
            )

        return quantizable.linearize(graph, chosen), write, references
    data = samples.of(ctx.input("calibration"))
    inputs = {t.name: (t.dtype, t.shape) for t in component.inputs}
    calibration.require_inputs({name: dtype for name, (dtype, _) in inputs.items()}, data)
    references = calibration.outputs(graph, _spread(spec, data, inputs, graph))
    found = quantizable.linearize(graph, chosen)
    return found, _calibrated(spec, ctx, graph, found, data, inputs), references


def _spread(spec: Spec, data: Samples, inputs: Any, graph: Graph) -> Iterator[Any]:
    """Some batches, short and long ones; on the way, all are checked to fit the model."""
    from modelbuild.lib import calibration

    every = max(1, min(len(data), spec.limit or len(data)) // CHECKED)
    for number, (count, feeds) in enumerate(calibration.batches(data, inputs, 1, spec.limit)):
        calibration.require_ids_fit(graph, feeds)
        if number % every == 0 and number // every < CHECKED:
            yield count, feeds


def _calibrated(
    spec: Spec, ctx: Context, graph: Graph, found: Found, data: Samples, inputs: Any
) -> Callable[[Graph, Found], None]:
    """Calibrate, choose ranges and smoothing; what writes the QDQ graph by them."""
    from modelbuild.lib import calibration, qdq, ranges

    total = min(len(data), spec.limit or len(data))
    passes = 1 if spec.calibrate == "minmax" else 2

    def step(done: int) -> None:
        ctx.progress(done, total * passes, "calibrate")

    def batched() -> Iterator[Any]:
        return calibration.batches(data, inputs, spec.batch_size, spec.limit)

    channels = ranges.channels(graph, found, outputs=spec.outputs)
    observed = calibration.observe(
        calibration.Probe(graph, channels),
        batched(),
        tokens=int(data.lengths[:total].sum()),
        step=step,
        averaging=spec.moving_average,
    )
    alpha = None if spec.smooth == "auto" else spec.smooth
    factors = (
        {} if spec.smooth is None else ranges.smoothing(graph, found, observed, alpha, per_channel=spec.per_channel)
    )
    if spec.calibrate == "minmax":
        plans = ranges.extremes(observed, factors)
    else:
        plans = ranges.by_histogram(
            calibration.Probe(graph, channels, whole=True),
            batched(),
            ranges.extremes(observed, factors),
            method=spec.calibrate,
            percent=spec.percentile or 99.999,
            step=lambda done: step(total + done),
        )
    trt = spec.runtime == "tensorrt"
    scheme = qdq.Scheme(
        activations=spec.activations or ("int8" if trt else "uint8"),
        weights=spec.weights,
        activation_symmetric=trt if spec.activation_symmetric is None else spec.activation_symmetric,
        weight_symmetric=spec.weight_symmetric,
        per_channel=spec.per_channel,
        reduce_range=spec.reduce_range,
        correct_bias=spec.correct_bias,
    )
    ctx.log(
        f"calibrated on {total} samples by {spec.calibrate}, {len(factors)} of {len(channels)} activations smoothed"
    )

    def write(graph: Graph, found: Found) -> None:
        read = {name for each in found for name in (each.input, each.output)}
        qdq.write(graph, found, {name: plan for name, plan in plans.items() if name in read}, observed, scheme)

    return write


def _checked(path: Path, references: list[tuple[dict[str, Any], list[Any]]]) -> tuple[float, float]:
    """(mean, worst) cosine of the outputs to the float model's; a `ProblemError` when they are of no use."""
    import numpy as np

    from modelbuild.lib import agreement, sessions

    session = sessions.open_session(path, threads=1)
    names = [o.name for o in session.get_outputs()]
    cosines = []
    for feeds, expected in references:
        with sessions.failures("the quantized model does not run"):
            got = session.run(names, feeds)
        cosines.append(min(agreement.cosine(a, b) for a, b in zip(expected, got, strict=True)))
    mean, worst = float(np.mean(cosines)), float(np.min(cosines))
    if not mean >= LOWEST_COSINE:
        raise problem(
            "quantization destroyed the model",
            cosine_to_the_float_model=f"{mean:.3f}",
            hint="calibrate by minmax on real data, keep `smooth` on, or keep sensitive nodes in floats by `exclude`",
        )
    return mean, worst
