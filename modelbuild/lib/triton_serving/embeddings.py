"""Sentence embeddings: the token vectors of a text pooled to one, and scaled to length 1 where the settings say so.

The poolings are those of sentence-transformers (`Pooling.forward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tokens import Tokens

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pooled(vectors: NDArray[Any], mask: NDArray[Any], pooling: str) -> NDArray[np.float32]:
    """(rows, tokens, width) and (rows, tokens) to (rows, width * poolings); `pooling` may join several by `+`."""
    vectors = vectors.astype(np.float32, copy=False)
    return np.concatenate([_pooled(vectors, mask, name) for name in pooling.split("+")], axis=1)


def _pooled(vectors: NDArray[np.float32], mask: NDArray[Any], pooling: str) -> Any:
    weight = mask.astype(np.float32)[..., None]
    if pooling == "cls":
        return vectors[np.arange(len(vectors)), mask.argmax(axis=1)]
    if pooling == "lasttoken":
        return vectors[np.arange(len(vectors)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)]
    if pooling == "max":
        return np.where(weight > 0, vectors, np.float32(-np.inf)).max(axis=1)
    if pooling == "weightedmean":
        weight = weight * weight.cumsum(axis=1)
    count = np.maximum(weight.sum(axis=1), 1e-9)
    if pooling == "mean_sqrt_len_tokens":
        count = np.sqrt(count)
    return ((vectors * weight).sum(axis=1) / count).astype(np.float32)


def reduce(
    rows: list[Any], inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]], settings: Mapping[str, Any]
) -> list[Any]:
    found = outputs[0]
    if found.ndim == 3:
        mask = inputs.get("attention_mask")
        found = pooled(found, np.ones(found.shape[:2]) if mask is None else mask, settings["pooling"])
    found = found.astype(np.float32, copy=False)
    if settings["normalize"]:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return list(found)


def answer(
    tokens: Tokens, columns: list[list[str]], reduced: list[Any], settings: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    return {"embedding": np.stack(reduced)}
