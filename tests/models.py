"""Seeded tiny models with real layouts: transformers checkpoints with a tokenizer, and an ONNX file without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "at",
    "by",
    "this",
    "from",
    "or",
    "have",
    "an",
    "they",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "said",
    "use",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
    "people",
    "my",
    "than",
    "first",
    "water",
    "been",
    "called",
    "who",
    "oil",
    "sit",
    "now",
    "find",
    "long",
    "down",
    "day",
    "did",
    "get",
    "come",
    "made",
    "may",
    "part",
    "!",
    "?",
    ".",
    ",",
    "##s",
    "##ing",
    "##ed",
    "##ly",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCES = (
    "the people of the water said it was a long day",
    "how many of them would like to go and see it?",
    "she could not find the oil.",
    "write down the number of each part, then look at it and use it",
)
VOCAB_SIZE = len(SPECIAL) + len(WORDS)
POSITIONS = 64


def write_tokenizer(
    folder: Path, *, words: tuple[str, ...] = tuple(WORDS), model_max_length: int = POSITIONS, left: bool = False
) -> None:
    """A WordPiece tokenizer in `folder`: tokenizer.json and tokenizer_config.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "model_max_length": model_max_length}
    if left:
        config["padding_side"] = "left"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ROWS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0}
MARKS = {"bos_token_id": 2, "eos_token_id": 3}
START = {"decoder_start_token_id": 0, "eos_token_id": 3}
ENCODER = {**ROWS, **SMALL, "max_position_embeddings": POSITIONS}
DECODER = {**ENCODER, **MARKS, "num_attention_heads": 4, "num_key_value_heads": 2}
BART = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8, "num_channels": 3}
SIZES: dict[str, dict[str, Any]] = {
    "albert": {**ENCODER, "embedding_size": 16},
    "bart": {**ROWS, **BART, **START, "max_position_embeddings": POSITIONS, "forced_eos_token_id": None},
    "bert": ENCODER,
    "camembert": {**ENCODER, "type_vocab_size": 1},
    "deit": IMAGE,
    "dinov2": IMAGE,
    "distilbert": {
        **{**ROWS, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
        "max_position_embeddings": POSITIONS,
    },
    "electra": {**ENCODER, "embedding_size": 16},
    "gpt2": {**ROWS, **MARKS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS},
    "llama": DECODER,
    "marian": {**ROWS, **BART, **START, "max_position_embeddings": POSITIONS, "forced_eos_token_id": None},
    "mistral": {**DECODER, "head_dim": 8, "sliding_window": 40},
    "modernbert": {
        **{**ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
        **MARKS,
    },
    "mpnet": ENCODER,
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "roberta": {**ENCODER, "type_vocab_size": 1},
    "t5": {**ROWS, **T5, **START},
    "vit": IMAGE,
    "whisper": {
        **{**ROWS, **BART, **START, "bos_token_id": 2, "num_mel_bins": 8, "max_source_positions": 30},
        "max_target_positions": POSITIONS,
    },
    "xlm-roberta": {**ENCODER, "type_vocab_size": 1},
}
"""Sizes of a tiny model of each type: 2 layers, 32 wide, `VOCAB_SIZE` tokens, `POSITIONS` positions."""
LABELS = ("joy", "anger", "surprise")


def config(model_type: str, **further: Any) -> Any:
    """The config of a tiny model."""
    import transformers

    return transformers.AutoConfig.for_model(model_type, **{**SIZES[model_type], **further})


def write_model(
    folder: Path,
    model_type: str = "bert",
    seed: int = 0,
    task: str = "feature-extraction",
    *,
    lively: bool = True,
    **save: Any,
) -> Path:
    """A seeded random checkpoint for a task with what goes with it in `folder`: a tokenizer, or an image's sizes.

    A lively model generates texts that do not repeat themselves (see `spread`). `save` goes to `save_pretrained`.
    """
    from modelbuild.lib.architectures import class_name
    from modelbuild.lib.export_tasks import TASKS
    from modelbuild.lib.lean_torch import import_class, import_torch

    torch = import_torch()
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    further = labels if TASKS[task].labels else {}
    model = import_class(class_name(model_type, task))(config(model_type, **further))
    if lively and TASKS[task].generates:
        spread(torch, model)
    model.save_pretrained(folder, **save)
    if TASKS[task].form == "image":
        write_image_processor(folder)
    elif TASKS[task].form != "speech":
        write_tokenizer(folder, left=TASKS[task].form == "decoder")
    return folder


def spread(torch: Any, model: Any) -> None:
    """Make what a fresh model generates depend on more than its last token: it would repeat that for ever."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1 and not any(part in name for part in ("wte", "wpe", "embed", "shared")):
                tensor.mul_(10)


def write_image_processor(folder: Path) -> None:
    """The settings of an image processor: 16 x 16 pixels, scaled to [-1, 1]."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": 16, "width": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_onnx(path: Path, *, rows: int = VOCAB_SIZE, width: int = 8, external: bool = False) -> Path:
    """A seeded ONNX encoder made by hand, no torch needed: embeddings of `input_ids`, masked, through one MatMul."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    table = numpy_helper.from_array(random.standard_normal((rows, width)).astype("float32"), "table")
    weight = numpy_helper.from_array(random.standard_normal((width, width)).astype("float32"), "weight")
    axes = numpy_helper.from_array(np.array([2]), "axes")
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "axes"], ["mask3"]),
            helper.make_node("Mul", ["embedded", "mask3"], ["masked"]),
            helper.make_node("MatMul", ["masked", "weight"], ["last_hidden_state"], name="project"),
        ],
        "encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, width])],
        [table, weight, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    location = f"{path.name}.data" if external else None
    onnx.save(model, str(path), save_as_external_data=external, location=location, size_threshold=64)
    return path
