"""How well a model does its task on labelled data: figures that need no second model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelbuild.errors import problem, suggestion

Scores = dict[str, float]


def of_classes(logits: Sequence[NDArray[Any]], labels: Sequence[Any], names: Mapping[str, Any]) -> Scores:
    """`accuracy` and macro `f1` of one row of logits [classes] per sample; labels are class numbers or names.

    By scikit-learn's `accuracy_score` and `f1_score`, the classes being those seen on either side.
    """
    known = {str(name): int(number) for number, name in names.items()}
    wanted = np.array([number(label, known, logits[0].shape[-1], row) for row, label in enumerate(labels)])
    chosen = np.array([int(row.argmax()) for row in logits])
    from sklearn.metrics import accuracy_score, f1_score

    return {"accuracy": float(accuracy_score(wanted, chosen)), "f1": float(f1_score(wanted, chosen, average="macro"))}


def number(label: Any, known: Mapping[str, int], count: int, row: int) -> int:
    """A sample's label (or a part of it) as a class number; a `ProblemError` for one that is no class."""
    if isinstance(label, str) and label in known:
        return known[label]
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < count:
        return label
    hint = suggestion(str(label), known) or "labels are the model's class names, or their numbers from 0"
    shown = ", ".join(known) or f"0 to {count - 1}"
    raise problem("a label is none of the model's classes", sample=row + 1, label=label, classes=shown, hint=hint)


def of_values(answers: Sequence[NDArray[Any]], labels: Sequence[Any]) -> Scores:
    """`pearson` and `spearman` correlation of one number per sample with the labels."""
    try:
        wanted = np.array([float(label) for label in labels])
    except (TypeError, ValueError):
        hint = "the model answers with one number, so labels are numbers"
        raise problem("a label is no number", hint=hint) from None
    got = np.array([float(row.reshape(-1)[0]) for row in answers])
    return {"pearson": _correlation("pearsonr", wanted, got), "spearman": _correlation("spearmanr", wanted, got)}


def of_similarity(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Spearman's correlation of all pairs' cosine similarities in two tables of embeddings [samples, width]."""

    def similarities(table: NDArray[Any]) -> NDArray[np.float64]:
        unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)], dtype=np.float64)

    return _correlation("spearmanr", similarities(reference), similarities(other))


def _correlation(name: str, a: NDArray[Any], b: NDArray[Any]) -> float:
    """A correlation of `scipy.stats`; NaN, which no requirement takes, where one side never changes."""
    import warnings

    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(getattr(stats, name)(a, b).statistic)


def of_texts(texts: Sequence[str], labels: Sequence[Any]) -> Scores:
    """`exact_match` and `wer` (by jiwer: over all words of the labels) of generated texts; labels are texts."""
    import jiwer

    for sample, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            hint = "the model answers with a text, so labels are texts"
            raise problem("a label is no text", sample=sample + 1, label=str(label)[:80], hint=hint)
    exact = [text.split() == label.split() for text, label in zip(texts, labels, strict=True)]
    return {"exact_match": sum(exact) / len(exact), "wer": float(jiwer.wer(list(labels), list(texts)))}


def negative_log_likelihood(logits: NDArray[Any], ids: NDArray[np.int64]) -> tuple[float, int]:
    """(sum over the next tokens of -log p, how many) of one text: logits [tokens, vocabulary], ids [tokens]."""
    rows = logits[:-1].astype(np.float64)
    if not len(rows):
        return 0.0, 0
    peak = rows.max(axis=1)
    normal = np.log(np.exp(rows - peak[:, None]).sum(axis=1)) + peak
    return float((normal - rows[np.arange(len(rows)), ids[1:]]).sum()), len(rows)


LOWER_IS_BETTER = frozenset({"perplexity", "wer"})
NAMES: Mapping[str, str] = {
    "accuracy": "part of the samples, or of the words, classified as labelled",
    "f1": "F1 score: the mean over the classes, of entities, or of the words of answers",
    "exact_match": "part of the samples answered with just the labelled text",
    "wer": "word error rate of generated texts",
    "pearson": "Pearson's correlation with the labels",
    "spearman": "Spearman's rank correlation with the labels",
    "similarity_spearman": "rank correlation of all pairs' similarities with the reference's",
    "text_agreement": "part of the generated texts that are the reference's",
    "perplexity": "perplexity of the texts (causal language models)",
}
