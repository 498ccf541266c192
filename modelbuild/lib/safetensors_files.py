"""safetensors files by their headers alone: what they hold, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem

MAX_HEADER = 100_000_000
"""safetensors' own bound on the length of a header, in bytes."""
NUMPY = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors' dtypes -> numpy's, with ml_dtypes' among them."""
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header (https://huggingface.co/docs/safetensors, "Format")."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, from its header alone; `ProblemError` for a corrupt or truncated file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise problem(
                f"`{path.name}` is a git-lfs pointer, not the weights",
                file=path,
                hint="git lfs pull",
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise _corrupt(path, f"its header would be {length} bytes long, the file is {size}")
        text = stream.read(length)
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=TensorInfo) for name, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise _corrupt(path, f"its header is not understood: {e}") from None
    if not tensors:
        raise _corrupt(path, "it holds no tensors")
    end = 8 + length + max(t.data_offsets[1] for t in tensors.values())
    if end != size:
        raise _corrupt(path, f"its header describes {end} bytes, the file has {size}")
    return tensors


def array(path: Path, info: TensorInfo, *, write: bool = False) -> Any:
    """A tensor of a file as a numpy array that stands in it (`numpy.memmap`); with `write`, changing it changes the
    file."""
    import ml_dtypes
    import numpy as np

    name = NUMPY[info.dtype]
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
    return np.memmap(path, dtype, "r+" if write else "r", start + info.data_offsets[0], info.shape)


def _corrupt(path: Path, cause: str) -> Exception:
    return problem(
        f"the weight file `{path.name}` is corrupt or truncated",
        file=path,
        cause=cause,
        hint="copy or download it again",
    )


def precision(tensors: Iterable[TensorInfo]) -> str:
    """`fp32`, `fp16`, `bf16` or `fp64` when all floating-point tensors are, else `mixed`."""
    found = {PRECISIONS.get(t.dtype, t.dtype.lower()) for t in tensors if t.dtype[0] in "FB" and t.dtype != "BOOL"}
    return found.pop() if len(found) == 1 else "mixed"


def parameters(tensors: Iterable[TensorInfo]) -> int:
    """How many numbers the tensors hold."""
    total = 0
    for tensor in tensors:
        count = 1
        for dim in tensor.shape:
            count *= dim
        total += count
    return total
