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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component
from modelbuild.errors import problem
from modelbuild.kind import Context, Ref, SpecError

if TYPE_CHECKING:
    from modelbuild.lib.int8_graph import Made, Options
    from modelbuild.lib.sensitivity import Cost

VERSION = 2
TOOLS = {"onnx": "cpu", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()

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


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import int8_graph

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
        int8_graph.require_matched([source.path / graph.file for graph in graphs.values()], _options(spec))
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
    from modelbuild.lib import int8_graph, samples, sensitivity

    data = samples.of(ctx.input("calibration")) if spec.calibration is not None else None
    called = name if len(source.descriptor.components) > 1 else None

    def quantized(exclude: tuple[str, ...], *, weigh: bool) -> Made:
        options = _options(msgspec.structs.replace(spec, exclude=exclude))
        paths = source.path / component.file, component, ctx.out / component.file
        return int8_graph.quantize(*paths, options, data, ctx, weigh=weigh, called=called)

    made = quantized(spec.exclude, weigh=spec.weighs)
    costs, least, count = made.costs, spec.least_cosine, 0
    while least is not None and made.mean < least:
        count = max(count + 1, 0 if count else sensitivity.to_spare(made.mean, costs, least))
        if count >= len(costs):
            raise problem(
                f"`least_cosine: {least}` cannot be held",
                reached=f"{made.mean:.5f}, with all but one of {len(costs)} products in floats",
                hint="calibrate on more or better data, or leave embedding tables in floats: `embeddings: false`",
            )
        made = quantized((*spec.exclude, *(glob.escape(cost.node) for cost in costs[:count])), weigh=False)
    if spec.weighs:
        _tell_costs(ctx, costs, count)
    return msgspec.structs.replace(made, costs=costs, spared=count)


def _options(spec: Spec) -> Options:
    from modelbuild.lib.int8_graph import Options

    return msgspec.convert(spec, Options, from_attributes=True)


def _tell_costs(ctx: Context, costs: Sequence[Cost], spared: int) -> None:
    """The dearest products, and which of them stay in floats."""
    for place, cost in enumerate(costs[: max(spared, TOLD)]):
        stays = "; stays in floats" if place < spared else ""
        ctx.log(f"`{cost.node}` costs {cost.cosine:.5f} of cosine{stays}")
    if not spared:
        names = ", ".join(f'"{cost.node}"' for cost in costs[:TOLD] if cost.cosine > 0)
        ctx.log(f"to spare them: `exclude: [{names}]`" if names else "no product costs anything")
