"""What is gathered of one model's answers for its scores: no more than a row of numbers, or a text, per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelbuild.artifact import Artifact
from modelbuild.lib import greedy, reading, scores, word_labels
from modelbuild.lib.answers import EMBEDDING, Answer
from modelbuild.lib.own_metrics import Kept, Metrics
from modelbuild.lib.samples import Samples
from modelbuild.lib.scores import Scores

MOST_EMBEDDINGS = 2000
"""Embeddings that are kept to correlate their similarities: 2 million pairs."""
CAUSAL = frozenset({"text-generation"})
WORDS = "token-classification"


class Tally:
    """Takes the answers of a model in the dataset's order; what is scored depends on what the answers are."""

    def __init__(self, model: Artifact, data: Samples, own: tuple[Metrics, Kept] | None = None) -> None:
        """`own`: functions of the user's, and where the answers are kept for them."""
        self.model, self.data, self.own = model, data, own
        self.labels, self.texts = data.labels(), data.texts()
        self.names = _class_names(model)
        self.rows: list[NDArray[Any]] = []
        self.words: list[word_labels.Words] = []
        self.generated: list[str] = []
        self.chosen: list[str] = []
        self.right: list[list[str]] | None = None
        self.embeddings: list[NDArray[Any]] = []
        self.loss, self.tokens = 0.0, 0

    def add(self, answer: Answer, ids: NDArray[np.int64] | None) -> None:
        """Take what the scores need of an answer; `ids` are the sample's tokens."""
        first = next(iter(answer.outputs.values()))
        if self.own is not None:
            self.own[1].add({n: str(v) if v.dtype.kind in "OU" else v for n, v in answer.outputs.items()})
        if self.labels is not None:
            self._add_labelled(answer, first, self.labels)
        if EMBEDDING in answer.outputs and len(self.embeddings) < MOST_EMBEDDINGS:
            self.embeddings.append(np.array(answer.outputs[EMBEDDING]))
        if self.model.descriptor.task in CAUSAL and ids is not None and first.ndim == 2 and len(first) == len(ids):
            loss, tokens = scores.negative_log_likelihood(first, ids)
            self.loss, self.tokens = self.loss + loss, self.tokens + tokens

    def _add_labelled(self, answer: Answer, first: NDArray[Any], labels: Sequence[Any]) -> None:
        if greedy.TEXT in answer.outputs:
            self.generated.append(str(answer.outputs[greedy.TEXT]))
        elif set(reading.OUTPUTS) <= answer.outputs.keys():
            if self.texts is not None:
                self._add_span(answer, self.texts, labels)
        elif first.ndim == 1:
            self.rows.append(np.array(first))
        elif self.texts is not None and self.model.descriptor.task == WORDS and first.ndim == 2:
            places, text = self.data.places(answer.sample), self.texts[answer.sample]
            label = labels[answer.sample]
            self.words.append(word_labels.of(first, places, text, label, self.names, answer.sample))

    def _add_span(self, answer: Answer, texts: Sequence[Any], labels: Sequence[Any]) -> None:
        if self.right is None:
            self.right = reading.answers(labels)
        starts, ends = (answer.outputs[name] for name in reading.OUTPUTS)
        places, may_be_none = self.data.places(answer.sample), not all(self.right)
        self.chosen.append(reading.answer(starts, ends, places, texts[answer.sample], may_be_none=may_be_none))

    def scores(self) -> Scores:
        """The scores that what was gathered gives."""
        found: Scores = {}
        if self.labels is not None:
            found |= self._labelled(self.labels)
        if self.tokens:
            found["perplexity"] = float(np.exp(self.loss / self.tokens))
        if self.own is not None:
            metrics, kept = self.own
            found |= metrics.of(kept.outputs(), self.labels)
        return found

    def _labelled(self, labels: Sequence[Any]) -> Scores:
        if len(self.rows) == len(labels):
            of_one = self.rows[0].size == 1
            return scores.of_values(self.rows, labels) if of_one else scores.of_classes(self.rows, labels, self.names)
        if len(self.words) == len(labels):
            return word_labels.scored(self.words, self.names)
        if self.right is not None and len(self.chosen) == len(labels):
            return reading.scored(self.chosen, self.right)
        if len(self.generated) == len(labels):
            return scores.of_texts(self.generated, labels)
        return {}


def _class_names(model: Artifact) -> Mapping[str, Any]:
    """Class number -> name, as the model's settings have them."""
    labels = model.descriptor.settings.get("labels") or ()
    return {str(n): name for n, name in enumerate(labels)} if isinstance(labels, list | tuple) else dict(labels)
