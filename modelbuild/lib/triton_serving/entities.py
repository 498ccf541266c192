"""Token classification: entities with their place in the text, in characters, as one JSON list for each text.

Grouped as by transformers' `TokenClassificationPipeline`: `none` gives every token, `simple` joins neighbours of one
tag, `first`, `average` and `max` decide word by word before that. Label `O` is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels import softmax
from .tokens import Tokens

AGGREGATIONS = ("none", "simple", "first", "average", "max")
OUTSIDE = "O"


def reduce(
    rows: list[Any], inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]], settings: Mapping[str, Any]
) -> list[Any]:
    """For each row the label scores of its real tokens, (tokens, labels)."""
    length, left = outputs[0].shape[1], settings["pad_left"]
    places = [slice(length - len(r.ids), length) if left else slice(0, len(r.ids)) for r in rows]
    return [softmax(logits[place]) for logits, place in zip(outputs[0], places, strict=True)]


def answer(
    tokens: Tokens, columns: list[list[str]], reduced: list[Any], settings: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    found = [
        json.dumps(_entities(row, text, scores, settings), ensure_ascii=False).encode()
        for row, text, scores in zip(tokens.rows, columns[0], reduced, strict=True)
    ]
    return {"entities": np.array(found, dtype=np.object_)[:, None]}


def _entities(row: Any, text: str, scores: NDArray[np.float32], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    how, names = settings["aggregation"], settings["labels"]
    pieces = [
        {"scores": scores[i], "start": start, "end": end, "word": row.word_ids[i]}
        for i, (start, end) in enumerate(row.offsets)
        if not row.special_tokens_mask[i]
    ]
    if how not in ("none", "simple"):
        pieces = [_word(group, how) for group in _words(pieces)]
    labelled = [{**p, "label": names[int(p["scores"].argmax())], "score": float(p["scores"].max())} for p in pieces]
    groups = [[p] for p in labelled] if how == "none" else list(_groups(labelled))
    return [
        {
            "entity" if how == "none" else "entity_group": label,
            "score": round(float(np.mean([p["score"] for p in group])), 6),
            "start": group[0]["start"],
            "end": group[-1]["end"],
            "word": text[group[0]["start"] : group[-1]["end"]],
        }
        for group in groups
        if (label := group[0]["label"] if how == "none" else _tag(group[0]["label"])[1]) != OUTSIDE
    ]


def _words(pieces: list[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """Neighbours of one word, as the tokenizer parts words."""
    group: list[dict[str, Any]] = []
    for piece in pieces:
        if group and piece["word"] != group[-1]["word"]:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _word(group: list[dict[str, Any]], how: str) -> dict[str, Any]:
    """One piece for a word: scored by its first token, by the surest, or by the mean of all."""
    if how == "average":
        scores = np.mean([p["scores"] for p in group], axis=0)
    else:
        scores = group[0]["scores"] if how == "first" else max(group, key=lambda p: p["scores"].max())["scores"]
    return {"scores": scores, "start": group[0]["start"], "end": group[-1]["end"], "word": group[0]["word"]}


def _groups(pieces: list[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """Neighbours of one tag; `B-` begins a new group."""
    group: list[dict[str, Any]] = []
    for piece in pieces:
        begins, tag = _tag(piece["label"])
        if group and (begins or tag != _tag(group[-1]["label"])[1]):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the label without `B-` or `I-`."""
    return label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label
