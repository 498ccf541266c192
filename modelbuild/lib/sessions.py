"""ONNX Runtime sessions that run on what was asked for, and say so when they cannot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from modelbuild.artifact import Tensor
from modelbuild.errors import problem

CPU = ("CPUExecutionProvider",)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def require_one_package() -> None:
    """A `ProblemError` when both ONNX Runtime packages are installed: they overwrite each other's files in silence."""
    found = [name for name in DISTRIBUTIONS if _installed(name)]
    if len(found) > 1:
        raise problem(
            "`onnxruntime` and `onnxruntime-gpu` are both installed",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted",
            versions=", ".join(f"{name} {metadata.version(name)}" for name in found),
        )


def _installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.version(name)
        return True
    return False


def runtime() -> Any:
    """The `onnxruntime` module, imported with telemetry off; a `ProblemError` for a broken installation."""
    require_one_package()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    if not hasattr(onnxruntime, "InferenceSession"):
        raise problem(
            "the package `onnxruntime` is an empty shell",
            hint="pip install --force-reinstall onnxruntime (removing onnxruntime-gpu had taken its files away)",
        )
    return onnxruntime


def open_session(
    model: Path | bytes,
    *,
    providers: Sequence[str] = CPU,
    threads: int = 0,
    optimize: bool = True,
    config: Mapping[str, str] | None = None,
) -> Any:
    """An `InferenceSession` of a model file (or of its bytes) on exactly `providers`.

    `threads` is the intra-op thread count, 0 for all cores; `optimize` is ORT_ENABLE_ALL against ORT_DISABLE_ALL;
    `config` holds further session config entries. Threads never spin. A `ProblemError` when the model does not load
    or when ONNX Runtime fell back to other providers.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    entries = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0", **(config or {})}
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    name = model.name if isinstance(model, Path) else "the model"
    missing = [p for p in providers if p not in ort.get_available_providers()]
    if missing:
        raise problem(
            f"this ONNX Runtime has no `{missing[0]}`",
            available=", ".join(ort.get_available_providers()),
            hint="install onnxruntime-gpu in place of onnxruntime" if missing[0] != CPU[0] else None,
        )
    with failures(f"ONNX Runtime does not load `{name}`"):
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=list(providers)
        )
    got = session.get_providers()
    if list(providers) != [p for p in got if p in providers] or got[0] != providers[0]:
        raise problem(
            f"ONNX Runtime does not run `{name}` on `{providers[0]}`",
            asked=", ".join(providers),
            got=", ".join(got),
            hint="the provider's libraries (CUDA, cuDNN, TensorRT) are missing or of another version; see the log",
        )
    return session


@contextlib.contextmanager
def failures(title: str) -> Iterator[None]:
    """Turns ONNX Runtime's exceptions, which share no base class of their own, into a `ProblemError` of `title`."""
    try:
        yield
    except Exception as e:
        if "onnxruntime" not in type(e).__module__ and not isinstance(e, (RuntimeError, ValueError)):
            raise
        raise problem(title, cause=_one_line(str(e))) from e


def _one_line(text: str) -> str:
    """The part of ONNX Runtime's message that tells the cause: without its own source locations."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else line[:400] + "…"


def random_inputs(inputs: Sequence[Tensor], sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Arrays for `inputs`, symbolic dimensions sized by `sizes` (2 where not named; `a + b` is the sum of the two).

    Integers are 1 in `*mask*`, 0 in `token_type_ids`, consecutive in `position_ids`, else small (0..9); floats are
    normal. A `ProblemError` for a dtype that cannot be made up (strings).
    """
    import numpy as np

    random = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for tensor in inputs:
        shape = tuple(d if isinstance(d, int) else _size(d, sizes) for d in tensor.shape)
        if tensor.dtype in ("string", "object"):
            raise problem(f"cannot make up values for the input `{tensor.name}`", dtype=tensor.dtype)
        kind = np.dtype(tensor.dtype).kind
        if kind == "f":
            values: Any = random.standard_normal(shape)
        elif "mask" in tensor.name or kind == "b":
            values = np.ones(shape)
        elif tensor.name == "token_type_ids":
            values = np.zeros(shape)
        elif tensor.name == "position_ids":
            values = np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)
        else:
            values = random.integers(0, 10, shape)
        made[tensor.name] = np.ascontiguousarray(values, dtype=tensor.dtype)
    return made


def _size(dim: str, sizes: Mapping[str, int]) -> int:
    """A symbolic dimension's size: its own, else the sum of its parts' (`past_sequence + sequence`)."""
    return sizes[dim] if dim in sizes else sum(sizes.get(part, 2) for part in dim.split(" + "))
