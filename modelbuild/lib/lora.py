"""LoRA adapters merged into the weights they were trained on: W + scale · B A, as PEFT's `merge_and_unload` does it.

An adapter is a folder that PEFT wrote: `adapter_config.json` and `adapter_model.safetensors`. Weights are changed in
place in a copy of the base's files, a tensor at a time, so memory is bounded by the largest; nothing is imported but
numpy. The sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA), and the layout of PEFT's
files (https://huggingface.co/docs/peft, "PEFT checkpoint format").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem, suggestion
from modelbuild.lib import checkpoint_files, safetensors_files
from modelbuild.lib.safetensors_files import TensorInfo

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
SAVED = ".modules_to_save"
UNKNOWN = ("layer_replication", "lora_bias", "target_parameters", "alora_invocation_tokens", "trainable_token_indices")
"""Settings that change what is added in ways that are not done here."""


class Adapter(msgspec.Struct, frozen=True):
    """An adapter's settings and the place of each of its tensors."""

    config: dict[str, Any]
    path: Path
    tensors: dict[str, TensorInfo]


class Change(msgspec.Struct, frozen=True):
    """What a tensor of the base becomes: by the adapter's module of that name, or by the tensor itself."""

    module: str
    whole: str | None = None
    """The adapter's tensor that takes its place."""


def read(root: Path, files: Iterable[Path]) -> Adapter:
    """The adapter in a folder; a `ProblemError` when it is none that can be merged."""
    found = {p.relative_to(root).as_posix(): p for p in files}
    if CONFIG not in found:
        hint = "name the folder that PEFT's `save_pretrained` wrote"
        raise problem(f"the adapter has no `{CONFIG}`", folder=root, found=", ".join(found) or "nothing", hint=hint)
    config = checkpoint_files.read_json(found[CONFIG])
    kind = config.get("peft_type")
    if kind != "LORA":
        raise problem(f"the adapter is not LoRA but {kind}", file=found[CONFIG], hint="merge it by PEFT, and save that")
    for name in UNKNOWN:
        if config.get(name):
            hint = "merge it by PEFT's `merge_and_unload`, and save that"
            raise problem(f"the adapter has `{name}`, which is not merged here", file=found[CONFIG], hint=hint)
    if WEIGHTS not in found:
        if PICKLED in found:
            hint = "save it with `safe_serialization=True`"
            raise problem("the adapter's weights are pickled, which can run code when loaded", found=PICKLED, hint=hint)
        raise problem(f"the adapter has no `{WEIGHTS}`", folder=root, hint="is the download complete?")
    return Adapter(config, found[WEIGHTS], safetensors_files.header(found[WEIGHTS]))


def plan(adapter: Adapter, base: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """Base tensor -> what it becomes. `base` are all tensors of the checkpoint by name.

    A `ProblemError` when the adapter has a tensor that has no place in the base, or one of another shape.
    """
    changes: dict[str, Change] = {}
    for name in adapter.tensors:
        module, whole = _module(name)
        target = _in_base(module if whole else f"{module}.weight", base, name)
        if target in changes and changes[target].whole != whole:
            raise problem("the adapter changes a tensor twice", tensor=target)
        changes[target] = Change(module, whole)
    for target, change in changes.items():
        _require_shape(adapter, change, target, base[target])
    return changes


def _module(name: str) -> tuple[str, str | None]:
    """The module that an adapter's tensor is of; or the tensor's own name in the base, and the adapter's."""
    for ending in (A, B, MAGNITUDE, f"{MAGNITUDE}.weight", EMBEDDING_A, EMBEDDING_B):
        if name.endswith(ending):
            return name.removesuffix(ending).removeprefix(PREFIX), None
    if ".lora_" in name:
        raise problem("the adapter has a tensor of an unknown kind", tensor=name)
    return name.removeprefix(PREFIX).replace(SAVED, "").replace(".base_layer", ""), name


def _in_base(wanted: str, base: Mapping[str, TensorInfo], tensor: str) -> str:
    """The base's tensor of that name, which may stand in a larger or a smaller model there (`bert.encoder...`)."""
    parts = wanted.split(".")
    for start in range(min(2, len(parts) - 2) + 1):
        shorter = ".".join(parts[start:])
        if shorter in base:
            return shorter
    longer = [name for name in base if name.endswith(f".{wanted}")]
    if len(longer) == 1:
        return longer[0]
    hint = suggestion(wanted, base) or "is it an adapter of another model? heads of its own are not merged"
    raise problem("the adapter changes what the checkpoint does not have", tensor=tensor, looked_for=wanted, hint=hint)


def _require_shape(adapter: Adapter, change: Change, target: str, info: TensorInfo) -> None:
    """A `ProblemError` unless what is added has the tensor's shape."""
    if change.whole is not None:
        found = adapter.tensors[change.whole].shape
    else:
        first, second = _pair(adapter, change.module)
        a, b = adapter.tensors[first].shape, adapter.tensors[second].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            title = "the adapter's A and B do not fit each other, or are no matrices"
            raise problem(title, module=change.module, a=list(a), b=list(b), hint="convolutions are not merged here")
        turned = first.endswith(EMBEDDING_A) or bool(adapter.config.get("fan_in_fan_out"))
        found = (a[1], b[0]) if turned else (b[0], a[1])
    if found != info.shape:
        raise problem(
            "the adapter does not fit the checkpoint",
            tensor=target,
            checkpoint=list(info.shape),
            adapter=list(found),
            hint="is it an adapter of another model, or of another size of it?",
        )
    if info.dtype not in safetensors_files.NUMPY or not info.dtype.startswith(("F", "BF")):
        raise problem("the adapter changes a tensor that is not in floats", tensor=target, dtype=info.dtype)


def _pair(adapter: Adapter, module: str) -> tuple[str, str]:
    """The names of a module's A and B."""
    for first, second in ((A, B), (EMBEDDING_A, EMBEDDING_B)):
        names = next(
            ((p + module + first, p + module + second) for p in (PREFIX, "") if p + module + first in adapter.tensors),
            None,
        )
        if names and names[1] in adapter.tensors:
            return names
    raise problem("the adapter has A or B of a module, but not both", module=module)


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied by: `lora_alpha` (by pattern where there is one) over the rank, or over its root."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        except re.error:
            raise problem("the adapter's `alpha_pattern` is not a pattern", pattern=pattern) from None
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def merge(
    adapter: Adapter, files: Mapping[Path, Iterable[str]], changes: Mapping[str, Change], step: Callable[[int], None]
) -> None:
    """Change the tensors in place. `files`: safetensors file -> its tensors that change; `step` hears how many did."""
    done = 0
    for path, names in files.items():
        tensors = safetensors_files.header(path)
        for name in names:
            place = safetensors_files.array(path, tensors[name], write=True)
            place[...] = merged(adapter, changes[name], place).astype(place.dtype)
            place.flush()
            done += 1
            step(done)


def merged(adapter: Adapter, change: Change, weight: Any) -> Any:
    """The weight as the adapter makes it, float32."""
    import numpy as np

    def taken(name: str) -> Any:
        return np.asarray(safetensors_files.array(adapter.path, adapter.tensors[name])).astype(np.float32)

    if change.whole is not None:
        return taken(change.whole)
    first, second = _pair(adapter, change.module)
    a, b = taken(first), taken(second)
    added = (b @ a) * np.float32(scale(adapter.config, change.module, a.shape[0]))
    turned = bool(adapter.config.get("fan_in_fan_out"))
    added = added.T if turned or first.endswith(EMBEDDING_A) else added
    found = np.asarray(weight).astype(np.float32) + added
    magnitude = next(
        (
            n
            for n in (first.replace(A, MAGNITUDE), first.replace(A, f"{MAGNITUDE}.weight"))
            if n in adapter.tensors and n != first
        ),
        None,
    )
    if magnitude is None:
        return found
    axis = 0 if turned else 1
    norm = np.linalg.norm(found, axis=axis, keepdims=True)
    return found * (taken(magnitude).reshape(norm.shape) / norm)
