"""Checkpoint folders in Hugging Face's layout: which files belong, whether the weights are whole, what they say."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG = "config.json"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", PICKLED_INDEX)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""`*.model` are SentencePiece's (`spiece.model`, `sentencepiece.bpe.model`, `tokenizer.model`)."""
EXTRAS = (
    CONFIG,
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "preprocessor_config.json",
    "*/config.json",
)
"""`*/config.json` are those of sentence-transformers' modules, such as `1_Pooling`."""
MAX_HEADER = 100_000_000
"""safetensors' own bound on the length of a header, in bytes."""
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}
SANE_LENGTH = 1_000_000
"""Tokenizers without a limit write 1e30 for their `model_max_length`."""
POOLINGS = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header (https://huggingface.co/docs/safetensors, "Format")."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def matching(names: Iterable[str], patterns: Collection[str]) -> tuple[str, ...]:
    """Those of the names (relative, `/`) that match a pattern, sorted; `*` stays within one folder."""
    return tuple(sorted(n for n in names if any(n.count("/") == p.count("/") and fnmatchcase(n, p) for p in patterns)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a `ProblemError` for anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as e:
        raise problem(f"`{path.name}` is not a JSON object", file=path, cause=e) from None


def read_config(files: Mapping[str, Path]) -> dict[str, Any]:
    """The checkpoint's config: a JSON object with a `model_type`, of an architecture that needs no foreign code."""
    if CONFIG not in files:
        raise problem(
            f"the checkpoint has no `{CONFIG}`",
            found=", ".join(sorted(files)) or "nothing that belongs to a checkpoint",
            hint="name the folder that `save_pretrained` wrote",
        )
    config = read_json(files[CONFIG])
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise problem(f"`{CONFIG}` has no `model_type`", file=files[CONFIG], hint="is it a transformers checkpoint?")
    foreign = config.get("auto_map")
    if foreign and not _is_native(model_type):
        raise problem(
            f"the checkpoint's architecture `{model_type}` is code of its own, which is never run",
            auto_map=", ".join(f"{k} → {v}" for k, v in sorted(foreign.items()))
            if isinstance(foreign, dict)
            else foreign,
            hint="use a checkpoint of an architecture that transformers has built in, or adopt its ONNX file",
        )
    return config


def _is_native(model_type: str) -> bool:
    """Whether transformers has a folder for this model type; found without importing it (that takes seconds)."""
    found = importlib.util.find_spec("transformers")
    folder = model_type.replace("-", "_")
    if found is None or not re.fullmatch(r"\w+", folder):
        return False
    return any((Path(root) / "models" / folder).is_dir() for root in found.submodule_search_locations or ())


def weight_files(files: Mapping[str, Path]) -> tuple[str, ...]:
    """The names of the safetensors files that make up the weights, checked to be whole; the index first if any.

    Empty when there are none (the caller looks for pickled ones). `ProblemError` for a missing or corrupt file.
    """
    if WEIGHTS in files:
        header(files[WEIGHTS])
        return (WEIGHTS,)
    if INDEX in files:
        shards = read_index(files[INDEX])
        require_shards(files, INDEX, shards)
        for shard in sorted(set(shards.values())):
            missing = {name for name, file in shards.items() if file == shard} - header(files[shard]).keys()
            if missing:
                raise problem(f"`{shard}` lacks a tensor that `{INDEX}` names", tensor=min(missing))
        return (INDEX, *sorted(set(shards.values())))
    others = matching(files, ("*.safetensors",))
    if others:
        raise problem(
            f"the checkpoint has no `{WEIGHTS}`",
            found=", ".join(others),
            hint="an adapter alone is not a model: merge it into its base first"
            if any("adapter" in o for o in others)
            else f"if one of these is the model, name it `{WEIGHTS}`",
        )
    return ()


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file, of a sharded checkpoint's index."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise problem(f"`{path.name}` has no `weight_map`", file=path)
    for shard in shards.values():
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            raise problem(f"`{path.name}` names weights outside its folder", location=shard)
    return shards


def require_shards(files: Mapping[str, Path], index: str, shards: Mapping[str, str]) -> None:
    """A `ProblemError` unless every file the index names is there."""
    named = sorted(set(shards.values()))
    missing = [s for s in named if s not in files]
    if missing:
        raise problem(
            f"the weight file `{missing[0]}` is missing",
            named_by=f"`{index}`, which names {len(named)} files of which {len(missing)} are missing",
            hint="the download or copy is not complete",
        )


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


def settings(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """Inference settings (JSON values) that the checkpoint's own files state.

    `architecture`, `model_type`; `max_positions`: tokens the position embeddings allow; `max_length`: tokens the
    model is meant for (sentence-transformers' limit, else the tokenizer's, else `max_positions`); `vocab_size`;
    `pooling` (mean, cls, max, ..., joined by `+`), `normalize`, `lowercase` and `modules` (what else
    sentence-transformers appends) where given; `labels` of a classifier, by index.
    """
    found: dict[str, Any] = {"model_type": config["model_type"]}
    architectures = config.get("architectures")
    if architectures:
        found["architecture"] = architectures[0]
    if isinstance(config.get("vocab_size"), int):
        found["vocab_size"] = config["vocab_size"]
    positions = _positions(config)
    if positions:
        found["max_positions"] = positions
    bert = read_json(files["sentence_bert_config.json"]) if "sentence_bert_config.json" in files else {}
    tokenizer = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    lengths = (bert.get("max_seq_length"), tokenizer.get("model_max_length"), positions)
    sane = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < SANE_LENGTH]
    if sane:
        found["max_length"] = min(sane[0], positions or sane[0])
    if bert.get("do_lower_case"):
        found["lowercase"] = True
    found |= _modules(files)
    labels = config.get("id2label")
    if (
        isinstance(labels, dict)
        and all(k.isdecimal() for k in labels)
        and "Classification" in str(found.get("architecture", ""))
    ):
        found["labels"] = [labels[k] for k in sorted(labels, key=int)]
    return found


def _positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that have a position embedding; RoBERTa and its kin start counting after the padding index."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    offset = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "mpnet", "longformer", "xmod", "data2vec-text")
    if config["model_type"] in offset:
        pad = 1 if config["model_type"] == "mpnet" else config.get("pad_token_id")
        return positions - (pad if isinstance(pad, int) else 1) - 1
    return positions


def _modules(files: Mapping[str, Path]) -> dict[str, Any]:
    """What sentence-transformers does after the model, from `modules.json`."""
    if "modules.json" not in files:
        return {}
    try:
        modules = msgspec.json.decode(files["modules.json"].read_bytes(), type=list[dict[str, Any]])
    except msgspec.MsgspecError as e:
        raise problem("`modules.json` is not a JSON list of objects", file=files["modules.json"], cause=e) from None
    found: dict[str, Any] = {"normalize": False}
    others = []
    for module in modules:
        match str(module.get("type", "")).rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                file = files.get(f"{module.get('path')}/config.json")
                found["pooling"] = _pooling(read_json(file)) if file else "mean"
            case "Normalize":
                found["normalize"] = True
            case other:
                others.append(other)
    return found | ({"modules": others} if others else {})


def _pooling(config: Mapping[str, Any]) -> str:
    """sentence-transformers' pooling: `pooling_mode: mean`, or the older flags `pooling_mode_mean_tokens: true`."""
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return mode
    if isinstance(mode, list | tuple):
        return "+".join(str(m) for m in mode)
    return "+".join(name for flag, name in POOLINGS.items() if config.get(f"pooling_mode_{flag}")) or "mean"
