"""Texts of a file as encoded samples: all, the first few, or some drawn at random, without holding the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from modelbuild.lib.rows import TextFile
from modelbuild.lib.samples import Encoded, Text
from modelbuild.lib.tokenizing import Tokenizer

CHUNK = 512
"""Texts encoded at a time: enough to keep the tokenizer's threads busy, little enough to stay small."""

Progress: TypeAlias = Callable[[float, float, str], None]


class Tally(msgspec.Struct):
    """What is counted while texts stream by; `labels`, and the `texts` they are of, in the file's order."""

    blank: int = 0
    cut: int = 0
    largest: int = 0
    """The largest token id."""
    labels: list[Any] = []
    texts: list[Text] = []


def encode(
    file: TextFile,
    tokenizer: Tokenizer,
    tally: Tally,
    progress: Progress,
    *,
    chosen: Sequence[int] | None = None,
    limit: int | None = None,
) -> Iterator[Encoded]:
    """The rows that are not blank, encoded, in the file's order.

    `chosen` takes those at the given places among them (in any order); `limit` takes the first so many, and reads no
    further.
    """
    rows = itertools.islice(_kept(file, tally, progress, chosen), limit)
    while chunk := list(itertools.islice(rows, CHUNK)):
        for sample, cut in tokenizer.encode(chunk, places=file.label is not None):
            tally.cut += cut
            tally.largest = max(tally.largest, max(sample.ids, default=0))
            yield sample


def _kept(file: TextFile, tally: Tally, progress: Progress, chosen: Sequence[int] | None) -> Iterator[tuple[str, ...]]:
    wanted = iter(sorted(chosen or ()))
    following, place = next(wanted, None), 0
    for row in file.rows(lambda done, total: progress(done, total, "tokenize")):
        if row.blank:
            tally.blank += 1
            continue
        if chosen is None or place == following:
            following = next(wanted, None)
            if file.label is not None:
                tally.labels.append(row.label)
                tally.texts.append((row.words,) if row.words else row.texts)
            yield row.texts
        place += 1


def draw(file: TextFile, seed: int, limit: int | None, progress: Progress) -> list[int]:
    """Places of the samples to take among the rows that are not blank, shuffled; reads the file once to count."""
    count = sum(not row.blank for row in file.rows(lambda done, total: progress(done, total, "count")))
    return shuffled(count, seed, limit)


def shuffled(count: int, seed: int, limit: int | None) -> list[int]:
    """The first `limit` of `count` places in a random order (numpy's PCG64)."""
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(count)[:limit].tolist()
    return order


def places(chosen: Sequence[int]) -> list[int]:
    """For each of `chosen`, its place in ascending order: where the file's order put it."""
    place = {row: i for i, row in enumerate(sorted(chosen))}
    return [place[row] for row in chosen]
