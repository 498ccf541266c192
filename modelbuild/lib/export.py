"""Transformers checkpoints to ONNX: load, trace, write, and whether the result is the model."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.artifact import Component
from modelbuild.errors import problem
from modelbuild.lib import lean_torch, onnx_files, onnx_weights, sessions
from modelbuild.lib.export_tasks import DEFAULT_OPSET, TASKS, Exporter, Output

CHECKED_SHAPES = ((1, 7), (2, 16), (3, 33), (1, 1))
"""(batch, sequence) at which the result is compared with the model: batch 1 and odd lengths tell frozen dimensions."""
SAMPLE_SHAPE = (2, 9)
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Exported(msgspec.Struct, frozen=True):
    """An exported graph, and its largest difference from the model relative to the output's scale."""

    component: Component
    files: tuple[str, ...]
    difference: float


def export(
    folder: Path,
    out: Path,
    *,
    model_type: str,
    task: str,
    exporter: Exporter,
    opset: int | None,
    tolerance: float,
    progress: Callable[[float, float, str], None],
) -> Exported:
    """Write `out`/model.onnx from the checkpoint in `folder` (safetensors), fp32, and compare it with the model.

    The weights beside the graph, when they are too much for one file, are in `model.onnx.data`. A `ProblemError` when
    the checkpoint does not fit its class, the exporter fails, or an output differs by more than `tolerance` times
    its largest value at any of `CHECKED_SHAPES`.
    """
    steps = ("load the model", "trace the graph", "write the weights", "compare with the model")
    progress(0, len(steps), steps[0])
    torch = lean_torch.import_torch()
    cls = lean_torch.import_class(TASKS[task].models[model_type])
    model = load(folder, cls, TASKS[task].without)
    names = input_names(model)
    outputs = TASKS[task].outputs
    limit = _positions(model.config)
    cases = [made_inputs(names, batch, min(length, limit), model.config) for batch, length in CHECKED_SHAPES]
    with torch.inference_mode():
        expected = [_run(torch, model, case, outputs) for case in cases]
    progress(1, len(steps), steps[1])
    graph, state = _trace(torch, model, names, outputs, exporter, opset or DEFAULT_OPSET[exporter], limit)
    del model
    progress(2, len(steps), steps[2])
    path = out / onnx_files.MODEL
    onnx_files.clean(graph)
    component = onnx_files.component(graph)
    files = onnx_weights.save_with(graph, state, path)
    del graph, state
    gc.collect()
    progress(3, len(steps), steps[3])
    difference = compare(path, cases, expected, [o.name for o in outputs], tolerance)
    progress(4, len(steps), steps[3])
    return Exported(component, files, difference)


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


def _positions(config: Any) -> int:
    """The longest sequence to try; RoBERTa's positions start after its padding index."""
    found = getattr(config, "max_position_embeddings", None)
    return max(1, int(found) - int(getattr(config, "pad_token_id", 0) or 0) - 1) if found else 512


def input_names(model: Any) -> tuple[str, ...]:
    """The text inputs the model really takes: no segment ids where there is only one segment."""
    accepted = inspect.signature(model.forward).parameters
    segments = getattr(model.config, "type_vocab_size", 0) or 0
    return tuple(n for n in TEXT_INPUTS if n in accepted and (n != "token_type_ids" or segments > 1))


def made_inputs(names: Sequence[str], batch: int, length: int, config: Any) -> dict[str, Any]:
    """Random token ids, int64 [batch, length], with row i padded on the right by i tokens and masked there."""
    import numpy as np

    random = np.random.default_rng(batch * 1000 + length)
    pad = getattr(config, "pad_token_id", None) or 0
    ids = random.integers(0, config.vocab_size, (batch, length))
    ids[ids == pad] = (pad + 1) % config.vocab_size
    mask = np.ones((batch, length), dtype=np.int64)
    for row in range(1, batch):
        cut = max(1, length - row * 3)
        mask[row, cut:], ids[row, cut:] = 0, pad
    types = random.integers(0, max(1, getattr(config, "type_vocab_size", 1) or 1), (batch, length))
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: made[name] for name in names}


def _run(torch: Any, model: Any, case: Mapping[str, Any], outputs: Sequence[Output]) -> list[Any]:
    """The model's outputs as numpy arrays."""
    result = model(**{n: torch.from_numpy(v) for n, v in case.items()}, return_dict=True)
    return [getattr(result, o.name).numpy() for o in outputs]


def _trace(
    torch: Any, model: Any, names: Sequence[str], outputs: Sequence[Output], exporter: Exporter, opset: int, limit: int
) -> tuple[Any, dict[str, onnx_weights.Weight]]:
    """The graph without its weights, and the weights."""
    from modelbuild.lib import dynamo, torchscript

    sample = made_inputs(names, SAMPLE_SHAPE[0], min(SAMPLE_SHAPE[1], limit), model.config)
    tensors = {n: torch.from_numpy(v) for n, v in sample.items()}
    trace = torchscript.trace if exporter == "torchscript" else dynamo.trace
    try:
        return trace(model, tensors, {o.name: o.axes for o in outputs}, opset)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, TypeError, ValueError, AttributeError) as e:
        other = "dynamo" if exporter == "torchscript" else "torchscript"
        raise problem(
            f"the `{exporter}` exporter cannot export `{type(model).__name__}`",
            cause=" ".join(str(e).split())[:400],
            hint=f"try `exporter: {other}`; the log has the whole traceback",
        ) from e


def compare(
    path: Path,
    cases: Sequence[Mapping[str, Any]],
    expected: Sequence[Sequence[Any]],
    outputs: Sequence[str],
    tolerance: float,
) -> float:
    """The largest |graph - model| over the outputs of all cases, relative to that output's largest value.

    Runs the graph as written, without ONNX Runtime's own optimizations. A `ProblemError` beyond `tolerance`.
    """
    import numpy as np

    session = sessions.open_session(path, threads=1, optimize=False)
    worst = 0.0
    for case, wanted in zip(cases, expected, strict=True):
        shape = "x".join(str(n) for n in next(iter(case.values())).shape)
        with sessions.failures(f"the exported graph does not run at shape {shape}"):
            got = session.run(list(outputs), dict(case))
        for name, a, b in zip(outputs, got, wanted, strict=True):
            if a.shape != b.shape:
                raise problem(
                    f"the exported graph's `{name}` has another shape than the model's",
                    inputs=shape,
                    graph=list(a.shape),
                    model=list(b.shape),
                )
            difference = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12))
            if not difference <= tolerance:
                raise problem(
                    "the exported graph differs from the model",
                    output=name,
                    inputs=shape,
                    difference=f"{difference:.3g} of the output's largest value",
                    tolerance=f"{tolerance:g}",
                    hint="try the other `exporter`; raise `tolerance` only where the difference is harmless",
                )
            worst = max(worst, difference)
    return worst
