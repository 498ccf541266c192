"""One model beside another on a dataset: their differences, and how well each does its task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelbuild.artifact import Artifact
from modelbuild.errors import problem, suggestion
from modelbuild.lib import answers, differences, runners, scores
from modelbuild.lib.answers import EMBEDDING, Answer
from modelbuild.lib.differences import Measured
from modelbuild.lib.own_metrics import Kept, Metrics
from modelbuild.lib.samples import Samples
from modelbuild.lib.tally import Tally

WORST = 3
"""Samples that are named where the model is worst."""
REFERENCE = "reference."
Progress = Callable[[float, float, str], None]


class Found(msgspec.Struct, frozen=True):
    """All figures by name, the samples with the worst cosine and their measures, and how many samples there were."""

    figures: dict[str, float]
    worst: tuple[tuple[int, dict[str, float]], ...]
    count: int


def run(
    model: Artifact,
    reference: Artifact | None,
    data: Samples,
    *,
    size: int,
    provider: runners.Provider,
    progress: Progress,
    own: Metrics | None = None,
    scratch: Path | None = None,
    most: int | None = None,
) -> Found:
    """Run both on all samples; memory does not grow with the answers. A `ProblemError` for whatever cannot run.

    `own` are the user's metrics, for which the answers are kept in the folder `scratch`; `most` tokens are generated.
    """
    both = [model] if reference is None else [model, reference]
    for each in both:
        answers.require_inputs(each, data)
    runners.prepare(*both)
    tallies = [
        Tally(each, data, (own, Kept(scratch / str(n))) if own is not None and scratch is not None else None)
        for n, each in enumerate(both)
    ]
    measured: dict[str, list[Measured]] = {}
    same: list[bool] = []
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(answers.open_runner(each, provider, data, most=most)) for each in both]
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
                    _measure(expected, answer, measured, same)
            done += len(feeds_of[0][0])
            progress(done, len(data), "compare" if reference is not None else "score")
    figures = _figures(tallies, measured)
    if same:
        figures["text_agreement"] = sum(same) / len(same)
    return Found(figures, _worst(measured), len(data))


def _ids(feeds: Mapping[str, Any], row: int) -> NDArray[np.int64] | None:
    if "input_ids" not in feeds:
        return None
    ids = np.asarray(feeds["input_ids"][row])
    mask = feeds.get("attention_mask")
    return ids if mask is None else ids[np.asarray(mask[row]).astype(bool)]


def _measure(expected: Answer, answer: Answer, measured: dict[str, list[Measured]], same: list[bool]) -> None:
    """Compare two answers to a sample, output by output; of generated texts, whether they are the same."""
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
        if values.dtype.kind not in "fiub":
            same.append(str(values) == str(other))
            continue
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
            raise problem(f"`{name}` could not be measured", measures=scores.NAMES[plain], hint=_needs(plain))
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


def require_new_names(names: Iterable[str]) -> None:
    """A `ProblemError` when a metric of the user's is called as a figure that there is."""
    for name in names:
        if name in differences.NAMES or name in scores.NAMES:
            raise problem(f"`{name}` is a figure that there is already", hint="give your metric another name")


def _needs(name: str) -> str:
    """What a score that was not measured would have needed."""
    match name:
        case "perplexity":
            return "perplexity is of causal language models (`text-generation`)"
        case "similarity_spearman":
            return "it needs embeddings of at least three samples, and a reference: `against`"
        case "text_agreement":
            return "it is of models that generate (encoder and decoder), beside a reference: `against`"
        case "wer":
            return "it is of models that generate (encoder and decoder), on a dataset with `label`"
        case _:
            return "labels come with the dataset's `label`; which scores there are depends on the model's task"


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
    """A `ProblemError` when the dataset's tokens are not those of the model's tokenizer."""
    settings = data.descriptor.settings
    if "vocabulary" not in settings or not model.descriptor.tokenizer:
        return
    from modelbuild.lib.tokenizing import Tokenizer

    own = Tokenizer(model)
    if own.vocabulary != settings["vocabulary"]:
        other = settings["vocab_size"]
        raise problem(
            "the dataset was tokenized by another tokenizer than the model's",
            model=f"{own.vocab_size} tokens",
            dataset=f"{other} tokens" if other != own.vocab_size else f"{other} others",
            hint="build the dataset with `tokenizer:` naming the checkpoint that the model came from",
        )
