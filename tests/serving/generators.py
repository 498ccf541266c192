"""Models that generate, for the tests: tiny ones of transformers on bytes, and one that recites a text by heart."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelbuild.artifact import Artifact
from modelbuild.lib import sessions
from modelbuild.lib.triton_serving.generation import Generator, Job
from modelbuild.lib.triton_serving.pieces import HALF
from modelbuild.lib.triton_serving.steps import Steps
from modelbuild.lib.triton_serving.stream_model import StreamModel
from tests import models
from tests.kinds.run import run_kind

POSITIONS = 96
TASKS = {"gpt2": "text-generation", "llama": "text-generation", "t5": "text2text-generation"}
TASKS |= {"bart": "text2text-generation", "marian": "text2text-generation"}
PAD, START, END = 0, 2, 3


def write_tokenizer(folder: Path, *, model_max_length: int = POSITIONS) -> int:
    """A tokenizer of bytes: a character that is not ASCII is two to four tokens. Returns the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*models.SPECIAL, *letters))}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(models.SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": model_max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocab)


def write_checkpoint(folder: Path, model_type: str, generation: dict[str, Any] | None = None, **config: Any) -> Path:
    """A tiny lively checkpoint on bytes; `generation` goes into its `generation_config.json`."""
    from modelbuild.lib.architectures import class_name
    from modelbuild.lib.lean_torch import import_class, import_torch

    torch = import_torch()
    torch.manual_seed(0)
    positions = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    own = {} if model_type == "t5" else {positions: POSITIONS}
    sizes = {**own, "vocab_size": write_tokenizer(folder), **config}
    model = import_class(class_name(model_type, TASKS[model_type]))(models.config(model_type, **sizes))
    models.spread(torch, model)
    model.save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(generation or {})}))
    return folder


def exported(folder: Path, source: Path, **options: Any) -> Artifact:
    """The ONNX artifact of a checkpoint's folder."""
    adopted = run_kind("checkpoint", folder / "checkpoint", {}, sources={"path": source})
    return run_kind("onnx", folder / "onnx", options, inputs={"from": adopted})


def recital(folder: Path, text: str, *, context: int = 512, work: int = 0) -> Artifact:
    """The adopted artifact of what `write_recital` writes."""
    write_recital(folder, text, context=context, work=work)
    return run_kind("onnx", folder / "made", {"task": "text-generation"}, sources={"path": folder})


def write_recital(folder: Path, text: str, *, context: int = 512, work: int = 0) -> None:
    """A decoder without weights that says `text` from the beginning after a prompt of one token, then ends.

    Its next token is a function of the position alone, the cache is for show. `work` makes every step multiply two
    matrices of that size.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = write_tokenizer(folder, model_max_length=context)
    import tokenizers

    said = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    table = np.zeros((context, size), np.float32)
    table[np.arange(context), [*said, *[END] * context][:context]] = 1
    constants = {
        **{"table": table, "one": np.array(1, np.int64), "axis": np.array(1, np.int64)},
        **{"axes": np.array([1, 3]), "end": np.array([2**62]), "last": np.array([1]), "zero": np.array(0, np.int64)},
        **{"limit": np.array(context - 1, np.int64), "big": np.full((work, work), 1e-3, np.float32)},
        "none": np.array(0, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("CumSum", ["attention_mask", "axis"], ["counted"]),
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "last"], ["length"]),
        node("Neg", ["length"], ["first"]),
        node("Slice", ["counted", "first", "end", "last"], ["new"]),
        node("Sub", ["new", "one"], ["places"]),
        node("Max", ["places", "zero"], ["least"]),
        node("Min", ["least", "limit"], ["place"]),
        node("Gather", ["table", "place"], ["scores"], axis=0),
        node("Cast", ["length"], ["scale"], to=TensorProto.FLOAT),
        node("Mul", ["big", "scale"], ["scaled"]),
        node("MatMul", ["scaled", "big"], ["product"]),
        node("ReduceSum", ["product"], ["sum"], keepdims=0),
        node("Mul", ["sum", "none"], ["nothing"]),
        node("Add", ["scores", "nothing"], ["logits"]),
        node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["numbers", "axes"], ["state"]),
    ]
    past, total = ["batch", 1, "past_sequence", 1], ["batch", 1, "past_sequence + sequence", 1]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "past_sequence + sequence"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", size])]
    for part in ("key", "value"):
        nodes.append(node("Concat", [f"past_key_values.0.{part}", "state"], [f"present.0.{part}"], axis=2))
        inputs.append(helper.make_tensor_value_info(f"past_key_values.0.{part}", TensorProto.FLOAT, past))
        outputs.append(helper.make_tensor_value_info(f"present.0.{part}", TensorProto.FLOAT, total))
    graph = helper.make_graph(
        nodes, "recital", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "recital.onnx"))
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": context}
    config |= {"vocab_size": size, "eos_token_id": END, "pad_token_id": PAD}
    (folder / "config.json").write_text(json.dumps(config))


def served(folder: Path, source: Artifact, **options: Any) -> Artifact:
    """The repository of a model that generates."""
    return run_kind("triton-repo", folder, options, inputs={"from": source})


class Heard:
    """Hears a request's texts, and waits for their end."""

    def __init__(self, rows: int) -> None:
        self.pieces: list[list[str]] = [[] for _ in range(rows)]
        self.reasons, self.made = [""] * rows, [0] * rows
        self.failure: str | None = None
        self.left = False
        self.begun, self.over = threading.Event(), threading.Event()

    def told(self, row: int, text: str, made: int, reason: str) -> None:
        self.pieces[row].append(text)
        self.made[row], self.reasons[row] = made, reason
        self.begun.set()

    def failed(self, cause: str) -> None:
        self.failure = cause
        self.over.set()

    def gone(self) -> bool:
        return self.left

    def ended(self) -> None:
        self.over.set()

    @property
    def texts(self) -> list[str]:
        assert self.over.wait(60), "the texts do not end"
        return ["".join(pieces) for pieces in self.pieces]


class Direct:
    """A model that streams, run here as the server would run it."""

    def __init__(self, made: Artifact, device: tuple[str, int] | None = None) -> None:
        name = made.descriptor.settings["stream"]
        self.model = StreamModel()
        self.model.folder = made.path / "models" / name / "1"
        self.model.read()
        self.settings = self.model.settings
        self.steps = Steps(self.model.folder, self.settings, lambda p: sessions.open_session(p, threads=1), device)
        self.generator = Generator(self.steps, self.model.prompts.rust, self.settings)

    def ask(self, texts: Sequence[str], **parameters: Any) -> Heard:
        """Ask as a request with these parameters does; a `ValueError` when it asks wrong."""
        asked = self.model.prompts.asked(list(texts), parameters)
        heard = Heard(len(texts))
        self.generator.submit(Job([p.tokens for p in asked.prompts], asked.mosts, asked.wishes, heard))
        return heard

    def close(self) -> None:
        self.generator.stop()


def expected(folder: Path, text: str, **options: Any) -> str:
    """What transformers generates for a text by itself, decoded as it stands behind the text.

    Without the token that ends it, and without what is no whole character at its end.
    """
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    seq2seq = config.get("is_encoder_decoder")
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        found = model.generate(**tokens, do_sample=False, **options)[0]
    ends = model.generation_config.eos_token_id
    if found[-1] in ([ends] if isinstance(ends, int) else ends):
        found = found[:-1]
    if seq2seq:
        return str(tokenizer.decode(found, skip_special_tokens=True)).rstrip(HALF)
    before = tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True)
    return str(tokenizer.decode(found, skip_special_tokens=True))[len(before) :].rstrip(HALF)
