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
from modelbuild.lib.safetensors_files import header

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
    "processor_config.json",
    "*/config.json",
)
"""`*/config.json` are those of sentence-transformers' modules, such as `1_Pooling`."""


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
            hint="an adapter alone is not a model: name its base here, and it as `adapter`"
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
