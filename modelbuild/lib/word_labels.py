"""Token classification against labels: one class for each word, scored word by word and entity by entity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelbuild.errors import problem
from modelbuild.lib import scores
from modelbuild.lib.samples import Text

OUTSIDE = "O"
Words = tuple[list[int], list[int]]
"""The classes of a sample's words that the model saw: as labelled, and as the model has them."""


def of(
    logits: NDArray[Any], places: NDArray[Any], text: Text, labels: Any, names: Mapping[str, Any], sample: int
) -> Words:
    """A sample's words, each by its first token: `logits` [tokens, classes], `places` [tokens, 3] (see `samples`).

    Words that were cut off have no token, and are left out. A `ProblemError` unless there is a label for each word.
    """
    starts = _starts(text)
    if not isinstance(labels, list) or len(labels) != len(starts):
        raise problem(
            "a sample has not one label for each word",
            sample=sample + 1,
            words=len(starts),
            labels=len(labels) if isinstance(labels, list) else repr(labels)[:80],
            hint="give the words as a list in the column, or as a text that white space parts",
        )
    known = {str(name): int(number) for number, name in names.items()}
    wanted, got, seen = [], [], -1
    shown = " ".join(text[0]) if not isinstance(text[0], str) else text[0]
    for row, (of_text, start, end) in zip(logits, places.tolist(), strict=False):
        inside = [i for i in range(start, end) if not shown[i].isspace()]
        if of_text < 0 or not inside:
            continue
        word = int(np.searchsorted(starts, inside[0], side="right")) - 1
        if word > seen:
            wanted.append(scores.number(labels[word], known, logits.shape[-1], sample))
            got.append(int(row.argmax()))
            seen = word
    return wanted, got


def _starts(text: Text) -> list[int]:
    """The place in characters at which each word begins."""
    if isinstance(text[0], str):
        return [i for i, c in enumerate(text[0]) if not c.isspace() and (not i or text[0][i - 1].isspace())]
    lengths = [len(word) + 1 for word in text[0]]
    return np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(int).tolist() if lengths else []


def scored(samples: Sequence[Words], names: Mapping[str, Any]) -> scores.Scores:
    """`accuracy` of words; `f1` of entities where all classes are `O`, `B-...` and `I-...`, else the mean over classes.

    An entity counts when its class and both of its ends are right, as in CoNLL's evaluation.
    """
    from sklearn.metrics import accuracy_score, f1_score

    wanted = [number for words, _ in samples for number in words]
    got = [number for _, words in samples for number in words]
    found: scores.Scores = {"accuracy": float(accuracy_score(wanted, got))}
    tags = {int(number): str(name) for number, name in names.items()}
    if not tags or not all(tag == OUTSIDE or tag[:2] in ("B-", "I-") for tag in tags.values()):
        return found | {"f1": float(f1_score(wanted, got, average="macro"))}
    right = total = 0
    for pair in samples:
        theirs, ours = ({*entities([tags[number] for number in numbers])} for numbers in pair)
        right += len(theirs & ours)
        total += len(theirs) + len(ours)
    return found | {"f1": 2 * right / total if total else float("nan")}


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(class, first word, word after the last) of each entity; an `I-` that continues nothing begins one."""
    current, first = "", 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        mark, _, name = tag.partition("-")
        if current and not (mark == "I" and name == current):
            yield current, first, i
            current = ""
        if not current and mark != OUTSIDE:
            current, first = name, i
