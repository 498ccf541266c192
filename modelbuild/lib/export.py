"""Models to ONNX: load a transformers checkpoint, trace its graphs, write them, and see whether they are the model."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from modelbuild.artifact import Component
from modelbuild.errors import problem
from modelbuild.lib import architectures, lean_torch, onnx_files, onnx_weights, sessions
from modelbuild.lib.export_graph import Case, Graph, Port
from modelbuild.lib.export_tasks import DEFAULT_OPSET, TASKS, Exporter, Task

Progress: TypeAlias = Callable[[float, float, str], None]


class Options(msgspec.Struct, frozen=True):
    """How to export: which of PyTorch's exporters, the opset (None: the exporter's default), the largest difference
    allowed as a part of each output's largest value."""

    exporter: Exporter
    opset: int | None
    tolerance: float


class Exported(msgspec.Struct, frozen=True):
    """The exported graphs by name, their largest difference from the model relative to an output's scale, and where
    that was looked for."""

    components: dict[str, Component]
    difference: float
    checked: str


def checkpoint(
    folder: Path, out: Path, *, model_type: str, task: str, use_cache: bool, options: Options, progress: Progress
) -> Exported:
    """Write the graphs of the checkpoint in `folder` (safetensors) for a task, fp32 (see `export`)."""
    progress(0, 4, "load the model")
    torch = lean_torch.import_torch()
    cls = lean_torch.import_class(architectures.class_name(model_type, task))
    model = load(folder, cls, TASKS[task].without)
    sources = graphs(torch, model, TASKS[task], use_cache)
    del model
    return export(torch, sources, out, options, progress)


def graphs(torch: Any, model: Any, task: Task, use_cache: bool) -> list[Graph]:
    """The graphs of a model for a task."""
    from modelbuild.lib import export_decoder, export_encoder, export_seq2seq

    match task.form:
        case "text":
            return export_encoder.text(torch, model, task)
        case "image":
            return export_encoder.image(torch, model, task)
        case "decoder":
            return export_decoder.graphs(torch, model, use_cache)
        case "seq2seq" | "speech":
            return export_seq2seq.graphs(torch, model, use_cache, task.form == "speech")


def export(torch: Any, sources: list[Graph], out: Path, options: Options, progress: Progress) -> Exported:
    """Write `out`/<name>.onnx for each graph, and compare it with the model. `sources` is emptied to let the model go.

    The weights beside a graph, when they are too much for one file, are in `<name>.onnx.data`. A `ProblemError` when
    the exporter fails, or an output differs by more than the tolerance times its largest value in any case.
    """
    components, checks = {}, []
    total = 2 * len(sources) + 2
    while sources:
        source = sources.pop(0)
        progress(total - 2 * len(sources) - 3, total, f"trace the {source.name}")
        graph, weights = _trace(torch, source, options)
        progress(total - 2 * len(sources) - 2, total, f"write the {source.name}")
        path = out / f"{source.name}.onnx"
        onnx_files.clean(graph)
        _name_axes(graph.graph, source)
        components[source.name] = onnx_files.component(graph, path.name)
        onnx_weights.save_with(graph, weights, path)
        checks.append((path, source.cases, [port.name for port in source.outputs]))
        del graph, weights, source
    gc.collect()
    progress(total - 1, total, "compare with the model")
    difference = max(compare(*check, options.tolerance) for check in checks)
    progress(total, total, "compare with the model")
    checked = "; ".join(dict.fromkeys(", ".join(c.name for c in cases) for _, cases, _ in checks))
    return Exported(components, difference, checked)


def load(folder: Path, cls: Any, options: Mapping[str, Any]) -> Any:
    """The model in eval mode, fp32, with eager attention (the form that ONNX Runtime's fusions know).

    `options` are given to the constructor of a class that knows them. The class is not imported here: torch keeps
    some of the frames of its import, which would keep this one's model alive.
    """
    torch = lean_torch.import_torch()
    known = inspect.signature(cls.__init__).parameters
    model, info = _from_pretrained(cls, folder, torch, {k: v for k, v in options.items() if k in known})
    missing = sorted(info["missing_keys"])
    if missing:
        raise problem(
            f"the checkpoint lacks weights of `{cls.__name__}`",
            missing=f"{len(missing)}, such as `{missing[0]}`",
            hint="its `config.json` and its weights are not of one model",
        )
    return model.eval()


def _from_pretrained(cls: Any, folder: Path, torch: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    try:
        loaded: tuple[Any, dict[str, Any]] = cls.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager",
            **options,
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        cause = " ".join(str(e).split()) or repr(e)
        raise problem(
            f"the checkpoint does not load as `{cls.__name__}`",
            cause=cause[:400],
            hint="its `config.json` and its weights are not of one model, or the config is damaged",
        ) from e
    return loaded


def _trace(torch: Any, source: Graph, options: Options) -> tuple[Any, dict[str, onnx_weights.Weight]]:
    """The graph without its weights, and the weights."""
    from modelbuild.lib import dynamo, torchscript

    trace = torchscript.trace if options.exporter == "torchscript" else dynamo.trace
    try:
        return trace(source, options.opset or DEFAULT_OPSET[options.exporter])
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, TypeError, ValueError, AttributeError) as e:
        other = "dynamo" if options.exporter == "torchscript" else "torchscript"
        raise problem(
            f"the `{options.exporter}` exporter cannot export `{type(source.module.model).__name__}`",
            cause=" ".join(str(e).split())[:400],
            hint=f"try `exporter: {other}`; the log has the whole traceback",
        ) from e


def _name_axes(graph: Any, source: Graph) -> None:
    """Give every dynamic axis its name and every other its size, where the exporter has names of its own."""
    inputs = {v.name: v for v in graph.input}
    for port, array in zip(source.inputs, source.sample.values(), strict=True):
        if port.name in inputs:
            _set_shape(inputs[port.name], port, array.shape)
    for i, (value, port) in enumerate(zip(graph.output, source.outputs, strict=True)):
        _set_shape(value, port, source.cases[0].expected[i].shape)


def _set_shape(value: Any, port: Port, sizes: Sequence[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    while len(dims) < len(sizes):
        dims.add()
    for axis, size in enumerate(sizes):
        if axis in port.axes:
            dims[axis].dim_param = port.axes[axis]
        else:
            dims[axis].dim_value = size


def compare(path: Path, cases: Sequence[Case], outputs: Sequence[str], tolerance: float) -> float:
    """The largest |graph - model| over the outputs of all cases, relative to that output's largest value.

    Runs the graph as written, without ONNX Runtime's own optimizations. A `ProblemError` beyond `tolerance`.
    """
    import numpy as np

    session = sessions.open_session(path, threads=1, optimize=False)
    taken = {i.name for i in session.get_inputs()}
    worst = 0.0
    for case in cases:
        with sessions.failures(f"the exported graph `{path.name}` does not run at {case.name}"):
            got = session.run(list(outputs), {n: v for n, v in case.feeds.items() if n in taken})
        for name, a, b in zip(outputs, got, case.expected, strict=True):
            if a.shape != b.shape:
                raise problem(
                    f"the exported graph's `{name}` has another shape than the model's",
                    inputs=case.name,
                    graph=list(a.shape),
                    model=list(b.shape),
                )
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
            difference = float(
                np.abs(wide_a - wide_b).max(initial=0) / max(float(np.abs(wide_b).max(initial=0)), 1e-12)
            )
            if not difference <= tolerance:
                raise problem(
                    "the exported graph differs from the model",
                    output=name,
                    inputs=case.name,
                    difference=f"{difference:.3g} of the output's largest value",
                    tolerance=f"{tolerance:g}",
                    hint="try the other `exporter`; raise `tolerance` only where the difference is harmless",
                )
            worst = max(worst, difference)
    return worst
