"""What can be exported: the tasks by transformers' pipeline names, and which of its tables has a task's classes.

A further task is one entry of `TASKS`. An architecture needs none: any that transformers has a class for is tried, and
stands if its graph computes what the model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

Exporter: TypeAlias = Literal["torchscript", "dynamo"]
DEFAULT_OPSET: Mapping[Exporter, int] = {"torchscript": 17, "dynamo": 20}
OPSETS: Mapping[Exporter, tuple[int, int]] = {"torchscript": (14, 20), "dynamo": (18, 23)}
"""What each exporter can write, and ONNX Runtime's fusions can read."""

Form: TypeAlias = Literal["text", "image", "decoder", "seq2seq", "speech"]
"""What goes in and out, and in how many graphs: one for text, image and decoder; encoder and decoder for the others."""

TEXT: tuple[str, ...] = (
    "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
DECODERS: tuple[str, ...] = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


class Output(msgspec.Struct, frozen=True):
    """An output of a task's graph: the attribute of the model's result, and its dynamic axes."""

    name: str
    axes: Mapping[int, str]


class Task(msgspec.Struct, frozen=True):
    """How a task's models are found and what their graphs give."""

    form: Form
    tables: tuple[str, ...]
    """transformers' tables from model type to class (`MODEL_FOR_<name>_MAPPING_NAMES`), in the order to look in."""
    heads: tuple[str, ...]
    """Ends of the class names by which a config says that the checkpoint is for this task."""
    tested: tuple[str, ...]
    """Model types that this project's tests and measurements cover."""
    outputs: tuple[Output, ...] = ()
    labels: bool = False
    """Whether the last axis of `logits` has names."""
    without: Mapping[str, Any] = {}
    """Constructor arguments that leave out what the outputs do not need, for the classes that know them."""

    @property
    def generates(self) -> bool:
        """Whether it is run token by token, with a key-value cache."""
        return self.form in ("decoder", "seq2seq", "speech")


BATCH, TOKENS = {0: "batch"}, {0: "batch", 1: "sequence"}
HEADLESS = {"add_pooling_layer": False}

TASKS: Mapping[str, Task] = {
    "feature-extraction": Task(
        "text", ("TEXT_ENCODING", ""), ("Model",), (*TEXT, *DECODERS, "t5"),
        (Output("last_hidden_state", TOKENS),), without=HEADLESS,
    ),
    "text-classification": Task(
        "text", ("SEQUENCE_CLASSIFICATION",), ("ForSequenceClassification",), (*TEXT, "gpt2"),
        (Output("logits", BATCH),), labels=True,
    ),
    "token-classification": Task(
        "text", ("TOKEN_CLASSIFICATION",), ("ForTokenClassification",), TEXT, (Output("logits", TOKENS),), labels=True
    ),
    "question-answering": Task(
        "text", ("QUESTION_ANSWERING",), ("ForQuestionAnswering",), TEXT,
        (Output("start_logits", TOKENS), Output("end_logits", TOKENS)),
    ),
    "fill-mask": Task("text", ("MASKED_LM",), ("ForMaskedLM",), TEXT, (Output("logits", TOKENS),)),
    "image-classification": Task(
        "image", ("IMAGE_CLASSIFICATION",), ("ForImageClassification",), ("deit", "resnet", "vit"),
        (Output("logits", BATCH),), labels=True,
    ),
    "image-feature-extraction": Task(
        "image", ("IMAGE",), ("Model",), ("dinov2", "vit"), (Output("last_hidden_state", BATCH),), without=HEADLESS
    ),
    "text-generation": Task("decoder", ("CAUSAL_LM",), ("ForCausalLM", "LMHeadModel"), DECODERS),
    "text2text-generation": Task(
        "seq2seq", ("SEQ_TO_SEQ_CAUSAL_LM",), ("ForConditionalGeneration", "MTModel"), ("bart", "marian", "t5")
    ),
    "automatic-speech-recognition": Task(
        "speech", ("SPEECH_SEQ_2_SEQ",), ("ForConditionalGeneration",), ("whisper",)
    ),
}  # fmt: skip

OTHER_NAMES: Mapping[str, str] = {
    "causal-lm": "text-generation",
    "embeddings": "feature-extraction",
    "masked-lm": "fill-mask",
    "ner": "token-classification",
    "seq2seq-lm": "text2text-generation",
    "sentence-similarity": "feature-extraction",
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "speech-to-text": "automatic-speech-recognition",
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "zero-shot-classification": "text-classification",
}
"""What else people call a task; only for a hint, since a task has one name."""
