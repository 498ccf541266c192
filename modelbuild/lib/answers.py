"""What a model answers on a dataset: batch by batch, cut into one answer per sample, padding left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelbuild.artifact import Artifact, Component, Tensor
from modelbuild.errors import problem
from modelbuild.lib import calibration, greedy, runners, sessions
from modelbuild.lib.runners import Runner
from modelbuild.lib.samples import Samples
from modelbuild.lib.triton_serving import embeddings

CACHE = "present."
"""What the names of outputs begin with that are no answer, but what a decoder keeps for its next token."""
EMBEDDING = "embedding"
"""What the pooled token vectors of an embedding model are called among its outputs."""


class Answer(msgspec.Struct, frozen=True):
    """The answers to one sample: its number in the dataset, and output name -> values of its real positions."""

    sample: int
    tokens: int
    outputs: dict[str, NDArray[Any]]


def require_inputs(model: Artifact, data: Samples) -> None:
    """A `ProblemError` when the dataset is empty or has not all that the model takes."""
    calibration.require_inputs({t.name: t.dtype for t in graph(model).inputs}, data)


def graph(model: Artifact) -> Component:
    """The graph that takes the samples: the one there is, or the encoder of a model that generates."""
    described = model.descriptor
    return described.components["encoder"] if greedy.generates(described) else described.model()


def batches(model: Artifact, data: Samples, size: int) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """(sample numbers, inputs) of at most `size` samples, in the dataset's order, so that lengths mix and are padded.

    A graph of a fixed batch is given one sample at a time where that batch is 1, and is refused for any other.
    """
    inputs = graph(model).inputs
    fixed = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], int)}
    if fixed - {1}:
        raise problem(
            "the model takes a fixed batch", batch=", ".join(map(str, fixed)), hint="export it with a dynamic batch"
        )
    width = next((t.shape[1] for t in inputs if len(t.shape) == 2 and isinstance(t.shape[1], int)), None)
    dtypes = {t.name: t.dtype for t in inputs}
    step = 1 if fixed else size
    names = [name for name in dtypes if name in data.inputs]
    found = data.batches(step, pad=width if not data.arrays else None, names=names, dtypes=dtypes)
    for number, feeds in enumerate(found):
        first = number * step
        yield np.arange(first, min(first + step, len(data))), feeds | _beginning(inputs, feeds)


def _beginning(inputs: Sequence[Tensor], feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What a decoder takes besides a text that begins: an empty cache, and positions that leave out padding."""
    rows = len(next(iter(feeds.values())))
    made: dict[str, NDArray[Any]] = {}
    for tensor in inputs:
        if tensor.name in feeds:
            continue
        if tensor.name == "position_ids":
            mask = np.asarray(feeds.get("attention_mask", np.ones_like(feeds["input_ids"])))
            made[tensor.name] = np.maximum(mask.cumsum(axis=1) - 1, 0).astype(tensor.dtype)
        else:
            made[tensor.name] = np.zeros(
                (rows, *(n if isinstance(n, int) else 0 for n in tensor.shape[1:])), tensor.dtype
            )
    return made


def of(
    runner: Runner, model: Artifact, numbers: NDArray[np.int64], feeds: Mapping[str, Any], *, title: str
) -> Iterator[Answer]:
    """The answers to one batch; a `ProblemError` of `title` when the model does not run or an answer is not finite."""
    with sessions.failures(title):
        found = {name: np.asarray(values) for name, values in runner.infer(dict(feeds)).items()}
    taker = graph(model)
    mask = feeds.get("attention_mask")
    real = None if mask is None or np.ndim(mask) != 2 else np.asarray(mask).astype(bool)
    settings = model.descriptor.settings
    if real is not None and settings.get("pooling") and len(taker.outputs) and taker.outputs[0].name in found:
        vectors = found[taker.outputs[0].name]
        known = all(name in embeddings.POOLINGS for name in str(settings["pooling"]).split("+"))
        if vectors.ndim == 3 and known:
            found[EMBEDDING] = embeddings.pooled(vectors, real, str(settings["pooling"]))
    for row, number in enumerate(numbers):
        outputs = {}
        for name, values in found.items():
            if values.ndim == 0 or len(values) != len(numbers) or name.startswith(CACHE):
                continue
            own = values[row]
            if isinstance(own, str):
                outputs[name] = np.asarray(own)
                continue
            if real is not None and _has_positions(taker, name) and own.ndim and len(own) == real.shape[1]:
                own = own[real[row]]
            if values.dtype.kind == "f" and not np.isfinite(own).all():
                raise problem(f"{title}: an answer is not finite", output=name, sample=int(number) + 1)
            outputs[name] = own
        tokens = int(real[row].sum()) if real is not None else 1
        yield Answer(int(number), tokens, outputs)


def _has_positions(graph: Component, name: str) -> bool:
    """Whether an output's second dimension is that of the tokens."""
    tokens = {t.shape[1] for t in graph.inputs if len(t.shape) == 2}
    return any(t.name == name and len(t.shape) > 1 and t.shape[1] in tokens for t in graph.outputs)


def open_runner(
    model: Artifact, provider: runners.Provider, data: Samples, threads: int = 1, most: int | None = None
) -> Runner:
    """What runs the model on the dataset: a plan by the profile that takes the dataset's first sample; a model that
    generates for `most` tokens (None: its own)."""
    if greedy.generates(model.descriptor):
        return greedy.Generator(model, provider, threads, most)
    if model.descriptor.format != "trt-plan":
        return runners.runner(model, provider=provider, threads=threads)
    _, feeds = next(iter(batches(model, data, 1)))
    shapes = {name: tuple(values.shape) for name, values in feeds.items()}
    return runners.runner(model, profile=runners.profile_for(model.descriptor, shapes))
