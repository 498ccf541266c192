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


def write_tokenizer(folder: Path, *, words: tuple[str, ...] = tuple(WORDS), model_max_length: int = POSITIONS) -> None:
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
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def config(model_type: str) -> Any:
    """The config of a tiny model: 2 layers, 32 wide, 2 heads, `VOCAB_SIZE` tokens, `POSITIONS` positions."""
    import transformers

    common = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0}
    if model_type == "distilbert":
        small = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": POSITIONS}
        return transformers.DistilBertConfig(**common, **small)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
    }
    if model_type == "roberta":
        return transformers.RobertaConfig(**common, **small, type_vocab_size=1)
    names = {"bert": "BertConfig", "electra": "ElectraConfig", "mpnet": "MPNetConfig", "albert": "AlbertConfig"}
    return getattr(transformers, names[model_type])(**common, **small)


def write_model(folder: Path, model_type: str = "bert", seed: int = 0, **save: Any) -> Path:
    """A seeded random checkpoint with its tokenizer in `folder`; `save` goes to `save_pretrained`."""
    from modelbuild.lib.export_tasks import TASKS
    from modelbuild.lib.lean_torch import import_class, import_torch

    torch = import_torch()
    torch.manual_seed(seed)
    model = import_class(TASKS["feature-extraction"].models[model_type])(config(model_type))
    model.save_pretrained(folder, **save)
    write_tokenizer(folder)
    return folder


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
