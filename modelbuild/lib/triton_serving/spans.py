"""Question answering: the span of the context that answers best, its score and its place in characters.

A context longer than the graph takes is read in overlapping windows. Within a window the start and end logits of the
context's tokens are made probabilities, and a span scores their product (BERT's SQuAD rule; transformers up to 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels import softmax
from .tokens import Tokens


def reduce(
    rows: list[Any], inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]], settings: Mapping[str, Any]
) -> list[Any]:
    """For each row its best span: (score, start, end) in characters; score 0 for a window without context."""
    starts, ends = outputs
    length, left = starts.shape[1], settings["pad_left"]
    found = []
    for i, row in enumerate(rows):
        first = length - len(row.ids) if left else 0
        places = [j for j, sequence in enumerate(row.sequence_ids) if sequence == 1]
        if not places:
            found.append((0.0, 0, 0))
            continue
        begin = softmax(starts[i, first:][places])
        end = softmax(ends[i, first:][places])
        spans = np.tril(np.triu(np.outer(begin, end)), settings["max_answer_length"] - 1)
        a, b = np.unravel_index(spans.argmax(), spans.shape)
        found.append((float(spans[a, b]), row.offsets[places[a]][0], row.offsets[places[b]][1]))
    return found


def answer(
    tokens: Tokens, columns: list[list[str]], reduced: list[Any], settings: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    best: list[tuple[float, int, int]] = [(-1.0, 0, 0)] * len(columns[1])
    for text, span in zip(tokens.of, reduced, strict=True):
        best[text] = max(best[text], span, key=lambda s: s[0])
    texts = [context[start:end].encode() for context, (_, start, end) in zip(columns[1], best, strict=True)]
    numbers = np.array(best, dtype=np.float64)
    return {
        "answer": np.array(texts, dtype=np.object_)[:, None],
        "score": numbers[:, :1].astype(np.float32),
        "start": numbers[:, 1:2].astype(np.int32),
        "end": numbers[:, 2:].astype(np.int32),
    }
