"""One model beside another on a dataset: their differences, and how well each does its task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelbuild.artifact import Artifact
from modelbuild.errors import problem, suggestion
from modelbuild.lib import answers, differences, runners, scores
from modelbuild.lib.answers import EMBEDDING, Answer
from modelbuild.lib.differences import Measured
from modelbuild.lib.samples import Samples

WORST = 3
"""Samples that are named where the model is worst."""
MOST_EMBEDDINGS = 2000
"""Embeddings that are kept to correlate their similarities: 2 million pairs."""
CAUSAL = frozenset({"text-generation"})
REFERENCE = "reference."
Progress = Callable[[float, float, str], None]


class Found(msgspec.Struct, frozen=True):
    """All figures by name, the samples with the worst cosine and their measures, and how many samples there were."""

    figures: dict[str, float]
    worst: tuple[tuple[int, dict[str, float]], ...]
    count: int


class Tally:
    """What is gathered of one model for its scores: no more than a row of numbers per sample."""

    def __init__(self, model: Artifact, labels: Sequence[Any] | None) -> None:
        self.model, self.labels = model, labels
        self.rows: list[NDArray[Any]] = []
        self.embeddings: list[NDArray[Any]] = []
        self.loss, self.tokens = 0.0, 0

    def add(self, answer: Answer, ids: NDArray[np.int64] | None) -> None:
        """Take what the scores need of an answer."""
        first = next(iter(answer.outputs.values()))
        if self.labels is not None and first.ndim == 1:
            self.rows.append(np.array(first))
        if EMBEDDING in answer.outputs and len(self.embeddings) < MOST_EMBEDDINGS:
            self.embeddings.append(np.array(answer.outputs[EMBEDDING]))
        if self.model.descriptor.task in CAUSAL and ids is not None and first.ndim == 2 and len(first) == len(ids):
            loss, tokens = scores.negative_log_likelihood(first, ids)
            self.loss, self.tokens = self.loss + loss, self.tokens + tokens

    def scores(self) -> scores.Scores:
        """The scores that what was gathered gives."""
        found: scores.Scores = {}
        if self.labels is not None and len(self.rows) == len(self.labels):
            if self.rows[0].size == 1:
                found |= scores.of_values(self.rows, self.labels)
            else:
                found |= scores.of_classes(self.rows, self.labels, _class_names(self.model))
        if self.tokens:
            found["perplexity"] = float(np.exp(self.loss / self.tokens))
        return found


def _class_names(model: Artifact) -> Mapping[str, Any]:
    """Class number -> name, as the model's settings have them."""
    labels = model.descriptor.settings.get("labels") or ()
    return {str(n): name for n, name in enumerate(labels)} if isinstance(labels, list | tuple) else dict(labels)


def run(
    model: Artifact,
    reference: Artifact | None,
    data: Samples,
    *,
    size: int,
    provider: runners.Provider,
    progress: Progress,
) -> Found:
    """Run both on all samples; memory does not grow with the answers. A `ProblemError` for whatever cannot run."""
    labels = data.labels()
    both = [model] if reference is None else [model, reference]
    for each in both:
        answers.require_inputs(each, data)
    runners.prepare(*both)
    tallies = [Tally(each, labels) for each in both]
    measured: dict[str, list[Measured]] = {}
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(answers.open_runner(each, provider, data)) for each in both]
        done = 0
        for feeds_of in zip(*(answers.batches(each, data, size) for each in both), strict=True):
            titles = ("the model does not run on the data", "the reference does not run on the data")
            got = [
                list(answers.of(runner, each, numbers, feeds, title=title))
                for runner, each, (numbers, feeds), title in zip(running, both, feeds_of, titles, strict=False)
            ]
            for tally, found, (_, feeds) in zip(tallies, got, feeds_of, strict=True):
                for row, answer in enumerate(found):
                    tally.add(answer, _ids(feeds, row))
            if reference is not None:
                for answer, expected in zip(*got, strict=True):
                    _measure(expected, answer, measured)
            done += len(feeds_of[0][0])
            progress(done, len(data), "compare" if reference is not None else "score")
    return Found(_figures(tallies, measured), _worst(measured), len(data))


def _ids(feeds: Mapping[str, Any], row: int) -> NDArray[np.int64] | None:
    if "input_ids" not in feeds:
        return None
    ids = np.asarray(feeds["input_ids"][row])
    mask = feeds.get("attention_mask")
    return ids if mask is None else ids[np.asarray(mask[row]).astype(bool)]


def _measure(expected: Answer, answer: Answer, measured: dict[str, list[Measured]]) -> None:
    for name, values in expected.outputs.items():
        other = answer.outputs.get(name)
        if other is None:
            raise problem(
                f"the model has no output `{name}`, which the reference has",
                model=", ".join(answer.outputs) or "none",
                reference=", ".join(expected.outputs),
                hint="compare models of one task and one interface",
            )
        if other.shape != values.shape:
            raise problem(
                f"the output `{name}` has another shape than the reference's",
                model=list(other.shape),
                reference=list(values.shape),
            )
        measured.setdefault(name, []).append(differences.measure(values, other))


def _figures(tallies: Sequence[Tally], measured: Mapping[str, list[Measured]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    if measured:
        each = {name: dict(differences.summary(samples)) for name, samples in measured.items()}
        answer = {EMBEDDING: each[EMBEDDING]} if EMBEDDING in each else each
        whole: dict[str, float] = {}
        for found in answer.values():
            whole = differences.worst(found, whole)
        figures |= whole
        figures |= {f"{name}.{figure}": value for name, found in each.items() for figure, value in found.items()}
    figures |= tallies[0].scores()
    if len(tallies) > 1:
        figures |= {f"{REFERENCE}{name}": value for name, value in tallies[1].scores().items()}
        tables = [tally.embeddings for tally in tallies]
        if all(len(table) > 2 for table in tables):
            figures["similarity_spearman"] = scores.of_similarity(np.stack(tables[1]), np.stack(tables[0]))
    return figures


def _worst(measured: Mapping[str, list[Measured]]) -> tuple[tuple[int, dict[str, float]], ...]:
    if not measured:
        return ()
    name = EMBEDDING if EMBEDDING in measured else next(iter(measured))
    order = sorted(range(len(measured[name])), key=lambda i: (measured[name][i].cosine, -measured[name][i].max_abs))
    return tuple(
        (i, {"cosine": rounded(measured[name][i].cosine), "max_abs": rounded(measured[name][i].max_abs)})
        for i in order[:WORST]
    )


def rounded(value: float) -> float:
    """To six digits: what is left of the order in which a machine adds."""
    return float(f"{value:.6g}")


def require_known(name: str, figures: Mapping[str, float]) -> None:
    """A `ProblemError` when a figure was not measured, or is not a number."""
    if name not in figures:
        possible = {**differences.NAMES, **scores.NAMES}
        plain = name.rpartition(".")[2]
        if plain in scores.NAMES and plain not in figures:
            hint = "labels come with the dataset's `label`; perplexity is of causal language models without a cache"
            raise problem(f"`{name}` could not be measured", measures=scores.NAMES[plain], hint=hint)
        if plain in differences.NAMES and not any(n in figures for n in differences.NAMES):
            raise problem(f"`{name}` could not be measured", hint="it compares with a reference: name it by `against`")
        known = [n for n in figures if not n.startswith(REFERENCE)]
        raise problem(
            f"`require` names no figure that there is: `{name}`",
            figures=", ".join(_plain(known)),
            hint=suggestion(name, [*known, *possible]),
        )
    if not np.isfinite(figures[name]):
        raise problem(f"`{name}` is not a number", hint="one side never changes: is the data varied enough?")


def _plain(names: Sequence[str]) -> list[str]:
    return [n for n in names if "." not in n] or list(names)


def lower_is_better(name: str) -> bool:
    """Whether a figure is an error and not a likeness."""
    plain = name.rpartition(".")[2]
    return plain in scores.LOWER_IS_BETTER or (plain in differences.NAMES and plain not in differences.HIGHER_IS_BETTER)


def reference_of(name: str, figures: Mapping[str, float]) -> float:
    """The reference's score of that name; a `ProblemError` for a figure of which it has none."""
    if REFERENCE + name not in figures:
        known = [n.removeprefix(REFERENCE) for n in figures if n.startswith(REFERENCE)]
        raise problem(
            f"`max_loss` is for scores, and `{name}` compares with the reference already",
            scores=", ".join(known) or "none",
            hint="use `min` or `max`",
        )
    return figures[REFERENCE + name]


def limit(name: str, reference: float, loss: float) -> float:
    """The worst that a score may be when it may be worse by the part `loss` of the reference's."""
    return reference + abs(reference) * (loss if lower_is_better(name) else -loss)


def require_same_tokenizer(model: Artifact, data: Artifact) -> None:
    """A `ProblemError` when the dataset's tokens are not of the model's vocabulary."""
    theirs = data.descriptor.settings.get("vocab_size")
    if theirs is None or not model.descriptor.tokenizer:
        return
    from modelbuild.lib.tokenizing import Tokenizer

    own = Tokenizer(model).vocab_size
    if own != theirs:
        raise problem(
            "the dataset was tokenized by another tokenizer than the model's",
            model=f"{own} tokens",
            dataset=f"{theirs} tokens",
            hint="build the dataset with `tokenizer:` naming the checkpoint that the model came from",
        )
