"""What a checkpoint's own files say about using it: lengths, pooling, labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem
from modelbuild.lib.checkpoint_files import read_json

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
TOKENS = ("eos", "bos", "pad", "decoder_start")
CHOICES: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "do_sample": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "suppress_tokens": None,
}
"""What of `generate`'s settings changes a text, with the values that mean nothing."""
OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose first position is one after the padding index."""

OWN_NAMES_OF_POSITIONS = {
    **dict.fromkeys(("codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"), "n_positions"),
    "mpt": "max_seq_len",
}
"""Model types whose config names its number of positions in its own way (T5's `n_positions` is no limit)."""


def settings(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """Inference settings (JSON values) that the checkpoint's own files state.

    `architecture`, `model_type`; `max_positions`: tokens the position embeddings allow; `max_length`: tokens the
    model is meant for (sentence-transformers' limit, else the tokenizer's, else `max_positions`); `vocab_size`;
    `pooling` (mean, cls, max, ..., joined by `+`), `normalize`, `lowercase` and `modules` (what else
    sentence-transformers appends) where given; `labels` of a classifier, by index, and its `problem_type` where given;
    `generation` of a model that generates (see `_generation`) and `image` of one that takes images (see `_image`).
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
        if isinstance(config.get("problem_type"), str):
            found["problem_type"] = config["problem_type"]
    for name, further in (("generation", _generation(files, config)), ("image", _image(files, config))):
        if further:
            found[name] = further
    return found


def _generation(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """What ends and starts a text: `eos_token_id` (one or a list), `bos_token_id`, `pad_token_id` and
    `decoder_start_token_id`, from `generation_config.json`, else from the config; and those of `CHOICES` that are set,
    from the file that transformers takes them from."""
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")):
        return {}
    own = read_json(files["generation_config.json"]) if "generation_config.json" in files else {}
    found = {f"{n}_token_id": own.get(f"{n}_token_id", config.get(f"{n}_token_id")) for n in TOKENS}
    choices = own if "generation_config.json" in files else config
    found |= {name: choices.get(name) for name, neutral in CHOICES.items() if choices.get(name) not in (neutral, [])}
    return {name: value for name, value in found.items() if value is not None}


def _image(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """How pixels become the input: `height`, `width`; `resize` (`height` and `width`, or `shortest_edge`, then cropped
    from the centre) by `resample` (PIL's number); 0..255 times `rescale`, less `mean`, by `std` (one per channel)."""
    given = read_json(files["preprocessor_config.json"]) if "preprocessor_config.json" in files else {}
    if not ({"image_mean", "size"} & given.keys() or "image_size" in config):
        return {}
    size, crop = _sides(given.get("size")), _sides(given.get("crop_size"))
    cropped = crop if given.get("do_center_crop", crop and "shortest_edge" in size) else {}
    found: dict[str, Any] = dict(cropped or (size if "height" in size else _sides(config.get("image_size"))))
    if given.get("do_resize", bool(size)) and size:
        found["resize"] = size
        if "resample" in given:
            found["resample"] = given["resample"]
    if given.get("do_rescale", "image_mean" in given):
        found["rescale"] = given.get("rescale_factor", 1 / 255)
    if given.get("do_normalize", "image_mean" in given) and "image_mean" in given:
        found |= {"mean": given["image_mean"], "std": given["image_std"]}
    return found


def _sides(size: Any) -> dict[str, int]:
    """A size as a dict: a number is both sides, a pair is height and width."""
    match size:
        case dict():
            return {str(k): v for k, v in size.items() if isinstance(v, int)}
        case int():
            return {"height": size, "width": size}
        case [int() as height, int() as width]:
            return {"height": height, "width": width}
        case _:
            return {}


def _positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that have a position embedding; RoBERTa and its kin start counting after the padding index."""
    positions = config.get(OWN_NAMES_OF_POSITIONS.get(config["model_type"], "max_position_embeddings"))
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config["model_type"] in OFFSET_POSITIONS:
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
