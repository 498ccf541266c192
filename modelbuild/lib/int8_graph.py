"""One ONNX graph from floats to 8 bits: what is chosen, calibrated and weighed, and the file that comes of it.

What the options mean is said where a recipe gives them, in the kind `int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from modelbuild.artifact import Component
from modelbuild.errors import problem
from modelbuild.lib import (
    agreement,
    calibration,
    dynamic_int8,
    onnx_files,
    qdq,
    quantizable,
    ranges,
    sensitivity,
    sessions,
)
from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.samples import Samples
from modelbuild.lib.sensitivity import Cost, Found

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul")
LOWEST_COSINE = 0.5
"""Below this, on its own calibration data, a model is not a model any more."""
CHECKED = 16
"""Samples on which the result is compared with the float model."""


class Options(msgspec.Struct, frozen=True):
    """How to quantize; the fields are those of the kind's `Spec`."""

    runtime: Literal["cpu", "tensorrt"]
    calibrate: Literal["minmax", "percentile", "entropy"]
    percentile: float | None
    moving_average: float | None
    smooth: float | Literal["auto"] | None
    per_channel: bool
    activations: Literal["uint8", "int8"] | None
    weights: Literal["int8", "uint8"]
    activation_symmetric: bool | None
    weight_symmetric: bool
    reduce_range: bool
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    exclude: tuple[str, ...]
    embeddings: bool | None
    correct_bias: bool
    outputs: bool
    batch_size: int
    limit: int | None


class Says(Protocol):
    """Who hears how far it is, and with what figures it was done."""

    def progress(self, done: float, total: float, what: str) -> None: ...

    def log(self, text: str) -> None: ...


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


def quantize(
    model_path: Path,
    component: Component,
    out: Path,
    options: Options,
    data: Samples | None,
    says: Says,
    *,
    weigh: bool = False,
    called: str | None = None,
) -> Made:
    """Quantize the graph in `model_path` into the file `out`, by ranges from `data` (None: taken at every run).

    With `weigh` what each product costs is measured first. `called` is the graph's name in a model of several, in which
    it may have nothing to quantize.
    """
    from modelbuild.lib import int8_tables, residuals

    model = onnx_files.load(model_path)
    _require_quantizable(options, model)
    graph = Graph(model)
    del model
    before = sum(a.nbytes for a in graph.constants.values())
    quantizable.name_nodes(graph)
    quantizable.fold_views(graph)
    chosen = _chosen(options, graph, static=data is not None, alone=called is None)
    names = [node.name for node in graph.nodes if node in chosen]
    if options.runtime == "cpu":
        residuals.keep_apart(graph.nodes, graph.constants)
    found, write, references = _prepared(options, data, says, component, graph, chosen)
    tables: list[str] = []

    def finish(graph: Graph, found: Found) -> None:
        write(graph, found)
        if options.embeddings or (options.embeddings is None and options.runtime == "cpu"):
            tables[:] = int8_tables.quantize(graph)
        graph.prune()

    costs: list[Cost] = []
    if weigh:
        total = len(found)
        _, costs = sensitivity.costs(
            graph, found, names, finish, references, lambda done: says.progress(done, total, "weigh products")
        )
    finish(graph, found)
    kept = sum(a.nbytes for a in graph.constants.values() if a.dtype == "float32")
    quantized = graph.model()
    onnx_files.clean(quantized)
    made = onnx_files.component(quantized, component.file)
    graph.constants.clear()
    out.parent.mkdir(parents=True, exist_ok=True)
    files = onnx_files.save(quantized, out)
    del quantized
    size = sum(out.with_name(file).stat().st_size for file in files)
    said = f"{len(found)} products and {len(tables)} embedding tables in int8"
    prefix = f"`{called}`: " if called else ""
    says.log(f"{prefix}{said}: {_size(size)}, was {_size(before)} ({_size(kept)} stay in floats)")
    mean, worst = _checked(out, references)
    return Made(made, size, mean, worst, tuple(costs))


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _require_quantizable(options: Options, model: Any) -> None:
    """A `ProblemError` for graphs that are quantized already, too old for QDQ, or of no use to the runtime."""
    done = sorted({n.op_type for n in model.graph.node if n.op_type in QUANTIZED or n.op_type.startswith("QLinear")})
    if done:
        raise problem("the model is already quantized", operators=", ".join(done), hint="take `from` the float model")
    own = sorted({n.op_type for n in model.graph.node if n.domain == "com.microsoft"})
    if options.runtime == "tensorrt" and own:
        raise problem(
            "TensorRT does not know ONNX Runtime's fused operators",
            operators=", ".join(own),
            hint="take `from` the exported model and not the fused one",
        )
    version = onnx_files.opsets(model).get("ai.onnx", 0)
    if version < 13:
        raise problem(f"opset {version} has no scales per channel", needed="13 or newer", hint="export it again")


def require_matched(paths: Iterable[Path], options: Options) -> None:
    """A `ProblemError` for a pattern that no graph in these files has a node for."""
    names: list[str] = []
    for path in paths:
        graph = Graph(onnx_files.load(path))
        quantizable.name_nodes(graph)
        names += [node.name for node in quantizable.candidates(graph)]
    quantizable.require_matched(names, nodes=options.nodes, exclude=options.exclude)


def _chosen(options: Options, graph: Graph, *, static: bool, alone: bool) -> list[Any]:
    """The nodes to quantize; a `ProblemError` when there are none in a model's only graph."""
    found = quantizable.candidates(graph)
    if alone:
        if not found:
            raise problem(
                "the model has nothing to quantize",
                looked_for=f"{', '.join(quantizable.OPS)} with a constant float32 weight",
                hint="int8 starts from a float32 model",
            )
        quantizable.require_matched([node.name for node in found], nodes=options.nodes, exclude=options.exclude)
    chosen = quantizable.choose(
        found, [op for op in options.ops if static or op != "Conv"], options.nodes, options.exclude
    )
    if alone and not chosen:
        counts = {op: sum(n.op_type == op for n in found) for op in quantizable.OPS}
        raise problem(
            "`ops`, `nodes` and `exclude` leave nothing to quantize" if static else "nothing to quantize dynamically",
            candidates=", ".join(f"{n} {op}" for op, n in counts.items() if n),
            hint=None if static else "convolutions need `calibration`",
        )
    return chosen


def _prepared(
    options: Options, data: Samples | None, says: Says, component: Component, graph: Graph, chosen: list[Any]
) -> tuple[Found, Callable[[Graph, Found], None], list[tuple[dict[str, Any], list[Any]]]]:
    """The chosen nodes as plain products; what quantizes some of them in place; inputs and float outputs to compare."""
    if data is None:
        cases = [feeds for _, feeds in agreement.cases(component.inputs)]
        references = calibration.outputs(graph, calibration.with_real_ids(graph, cases))

        def write(graph: Graph, found: Found) -> None:
            dynamic_int8.write(
                graph,
                [each for each in found if isinstance(each, quantizable.Linear)],
                weights=options.weights,
                symmetric=options.weight_symmetric,
                per_channel=options.per_channel,
                reduce_range=options.reduce_range,
            )

        return quantizable.linearize(graph, chosen), write, references
    inputs = {t.name: (t.dtype, t.shape) for t in component.inputs}
    calibration.require_inputs({name: dtype for name, (dtype, _) in inputs.items()}, data)
    references = calibration.outputs(graph, _spread(options, data, inputs, graph))
    found = quantizable.linearize(graph, chosen)
    return found, _calibrated(options, says, graph, found, data, inputs), references


def _spread(options: Options, data: Samples, inputs: Any, graph: Graph) -> Iterator[Any]:
    """Some batches, short and long ones; on the way, all are checked to fit the model."""
    every = max(1, min(len(data), options.limit or len(data)) // CHECKED)
    for number, (count, feeds) in enumerate(calibration.batches(data, inputs, 1, options.limit)):
        calibration.require_ids_fit(graph, feeds)
        if number % every == 0 and number // every < CHECKED:
            yield count, feeds


def _calibrated(
    options: Options, says: Says, graph: Graph, found: Found, data: Samples, inputs: Any
) -> Callable[[Graph, Found], None]:
    """Calibrate, choose ranges and smoothing; what writes the QDQ graph by them."""
    total = min(len(data), options.limit or len(data))
    passes = 1 if options.calibrate == "minmax" else 2

    def step(done: int) -> None:
        says.progress(done, total * passes, "calibrate")

    def batched() -> Iterator[Any]:
        return calibration.batches(data, inputs, options.batch_size, options.limit)

    channels = ranges.channels(graph, found, outputs=options.outputs)
    observed = calibration.observe(
        calibration.Probe(graph, channels),
        batched(),
        tokens=int(data.lengths[:total].sum()),
        step=step,
        averaging=options.moving_average,
    )
    alpha = None if options.smooth == "auto" else options.smooth
    factors = (
        {}
        if options.smooth is None
        else ranges.smoothing(graph, found, observed, alpha, per_channel=options.per_channel)
    )
    if options.calibrate == "minmax":
        plans = ranges.extremes(observed, factors)
    else:
        plans = ranges.by_histogram(
            calibration.Probe(graph, channels, whole=True),
            batched(),
            ranges.extremes(observed, factors),
            method=options.calibrate,
            percent=options.percentile or 99.999,
            step=lambda done: step(total + done),
        )
    trt = options.runtime == "tensorrt"
    scheme = qdq.Scheme(
        activations=options.activations or ("int8" if trt else "uint8"),
        weights=options.weights,
        activation_symmetric=trt if options.activation_symmetric is None else options.activation_symmetric,
        weight_symmetric=options.weight_symmetric,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        correct_bias=options.correct_bias,
    )
    says.log(
        f"calibrated on {total} samples by {options.calibrate}, {len(factors)} of {len(channels)} activations smoothed"
    )

    def write(graph: Graph, found: Found) -> None:
        read = {name for each in found for name in (each.input, each.output)}
        qdq.write(graph, found, {name: plan for name, plan in plans.items() if name in read}, observed, scheme)

    return write


def _checked(path: Path, references: list[tuple[dict[str, Any], list[Any]]]) -> tuple[float, float]:
    """(mean, worst) cosine of the outputs to the float model's; a `ProblemError` when they are of no use."""
    import numpy as np

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
