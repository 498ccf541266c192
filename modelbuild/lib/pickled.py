"""Pickled PyTorch weights, turned into safetensors once, so that nothing downstream ever unpickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem
from modelbuild.lib.checkpoint_files import INDEX, PICKLED, PICKLED_INDEX, WEIGHTS, read_index, require_shards


def convert(files: Mapping[str, Path], out: Path, progress: Callable[[float, float, str], None]) -> tuple[str, ...]:
    """Write `pytorch_model*.bin` of `files` as safetensors in `out`; the names written, the index first if any.

    Reads with `torch.load(weights_only=True)`, which builds tensors and plain containers and runs no code of the
    file's; a file that needs more is a `ProblemError`. One shard is in memory at a time.
    """
    if PICKLED in files:
        _convert(files[PICKLED], out / WEIGHTS)
        return (WEIGHTS,)
    index = read_index(files[PICKLED_INDEX])
    require_shards(files, PICKLED_INDEX, index)
    shards = sorted(set(index.values()))
    names = {s: f"model-{i:05}-of-{len(shards):05}.safetensors" for i, s in enumerate(shards, 1)}
    total = 0
    for i, shard in enumerate(shards, 1):
        total += _convert(files[shard], out / names[shard])
        progress(i, len(shards), "convert pickled weights")
    weight_map = {tensor: names[shard] for tensor, shard in sorted(index.items())}
    text = msgspec.json.encode({"metadata": {"total_size": total}, "weight_map": weight_map})
    (out / INDEX).write_bytes(msgspec.json.format(text, indent=2) + b"\n")
    return (INDEX, *names.values())


def _convert(source: Path, target: Path) -> int:
    """Convert one file; the bytes of its tensors."""
    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as e:
        cause = str(e).strip().splitlines() or [repr(e)]
        raise problem(
            f"the pickled weights `{source.name}` cannot be read safely",
            file=source,
            cause=cause[0],
            hint="the file is corrupt, or holds Python objects besides tensors; load it where you trust it and save "
            "it with `save_pretrained`, which writes safetensors",
        ) from None
    if not isinstance(state, dict) or not state:
        raise problem(f"the pickled weights `{source.name}` are not a state dict", type=type(state).__name__)
    wrong = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if wrong:
        raise problem(
            f"the pickled weights `{source.name}` hold more than tensors",
            entry=f"{wrong[0]!r} is a {type(state[wrong[0]]).__name__}",
            hint="save the model's `state_dict()` alone",
        )
    save_file(_unshared(state), target, metadata={"format": "pt"})
    return sum(int(t.nbytes) for t in state.values())


def _unshared(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors, contiguous, those that share memory (tied weights) copied: safetensors holds each by itself."""
    seen: set[int] = set()
    own: dict[str, Any] = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone().contiguous() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return own
