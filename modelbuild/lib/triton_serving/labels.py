"""Sequence classification: the best label, its score, and the scores of all labels.

Scores are made as by transformers' `TextClassificationPipeline`: softmax, sigmoid for several labels at a time or a
single one, logits for a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tokens import Tokens

FUNCTIONS = ("softmax", "sigmoid", "none")


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Over the last axis, in float32."""
    shifted = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    scaled: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scaled


def reduce(
    rows: list[Any], inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]], settings: Mapping[str, Any]
) -> list[Any]:
    logits = outputs[0].astype(np.float32)
    function = settings["scores"]
    if function == "none":
        return list(logits)
    return list(softmax(logits) if function == "softmax" else 1 / (1 + np.exp(-logits)))


def answer(
    tokens: Tokens, columns: list[list[str]], reduced: list[Any], settings: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    scores = np.stack(reduced).astype(np.float32)
    best = scores.argmax(axis=1)
    names = np.array([[settings["labels"][i].encode()] for i in best], dtype=np.object_)
    return {"label": names, "score": scores.max(axis=1, keepdims=True), "scores": scores}
