"""What a task makes of a graph's outputs: one entry of `TASKS` for each task that takes text and gives an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from . import embeddings, entities, labels, spans
from .tokens import Tokens

Arrays = Mapping[str, NDArray[Any]]


class Field(NamedTuple):
    """An output of a text model: its name, numpy dtype name (`string` for text), and shape without the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Task(NamedTuple):
    """How a task is served.

    `texts`: the names of the text inputs, each one string a row. `outputs(settings)`: what is answered, beside
    `tokens` and `truncated`. `graph`: the outputs it takes from the graph, by name; None for its first output.
    `reduce(rows, inputs, outputs, settings)`: of a padded batch of rows, what `answer` needs, one value a row.
    `answer(tokens, columns, reduced, settings)`: the outputs for all texts, first axis the texts.
    """

    texts: tuple[str, ...]
    outputs: Callable[[Mapping[str, Any]], tuple[Field, ...]]
    graph: tuple[str, ...] | None
    reduce: Callable[[list[Any], Arrays, list[NDArray[Any]], Mapping[str, Any]], list[Any]]
    answer: Callable[[Tokens, list[list[str]], list[Any], Mapping[str, Any]], dict[str, NDArray[Any]]]


TASKS: Mapping[str, Task] = {
    "feature-extraction": Task(
        texts=("text",),
        outputs=lambda s: (Field("embedding", "float32", (s["width"],)),),
        graph=None,
        reduce=embeddings.reduce,
        answer=embeddings.answer,
    ),
    "text-classification": Task(
        texts=("text",),
        outputs=lambda s: (
            Field("label", "string", (1,)),
            Field("score", "float32", (1,)),
            Field("scores", "float32", (len(s["labels"]),)),
        ),
        graph=None,
        reduce=labels.reduce,
        answer=labels.answer,
    ),
    "token-classification": Task(
        texts=("text",),
        outputs=lambda s: (Field("entities", "string", (1,)),),
        graph=None,
        reduce=entities.reduce,
        answer=entities.answer,
    ),
    "question-answering": Task(
        texts=("question", "context"),
        outputs=lambda s: (
            Field("answer", "string", (1,)),
            Field("score", "float32", (1,)),
            Field("start", "int32", (1,)),
            Field("end", "int32", (1,)),
        ),
        graph=("start_logits", "end_logits"),
        reduce=spans.reduce,
        answer=spans.answer,
    ),
}
COUNTED = (Field("tokens", "int32", (1,)), Field("truncated", "bool", (1,)))
"""What every text model says of each text: the tokens the model saw, and whether some were cut off."""
