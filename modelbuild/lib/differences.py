"""How far one model's answers are from another's, sample by sample.

Every measure is taken per sample, over the part of the answer that means something (padding is left out), and summed
up over the samples: a mean hides the one text that came out wrong, so the worst is told too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

DECIBELS = 200.0
"""What signal to noise ratios are cut to: equal answers have none that is finite."""
CLASSES = 5
"""Of how many best classes `top5_agreement` tells."""


class Measured(msgspec.Struct, frozen=True):
    """One sample's answer beside the reference's. Errors are absolute, or relative to the largest magnitude there."""

    cosine: float
    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    l2: float
    snr: float
    psnr: float
    top1: float
    top5: float


def measure(reference: NDArray[Any], other: NDArray[Any]) -> Measured:
    """Of two answers to one sample, of equal shape and finite: [..., classes or width], any float or integer dtype.

    `snr` = 10 log10(sum a^2 / sum (a-b)^2) and `psnr` = 20 log10(range of a / rmse), in dB, at most `DECIBELS`.
    `top1` and `top5` are the part of positions at which the reference's best entry of the last axis is the other's
    best, or among its best five.
    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    gap = np.abs(a - b)
    squares, noise = float((a * a).sum()), float((gap * gap).sum())
    largest = max(float(np.abs(a).max()), 1e-12)
    norm = np.sqrt(squares) * np.sqrt(float((b * b).sum()))
    if norm:
        cosine = float((a * b).sum() / norm)
    else:
        cosine = 1.0 if not noise else 0.0
    rms = np.sqrt(noise / a.size)
    top1, top5 = _agreement(a, b)
    return Measured(
        cosine=cosine,
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        max_rel=float(gap.max()) / largest,
        mean_rel=float(gap.mean()) / largest,
        l2=float(np.sqrt(noise)),
        snr=_decibels(10, squares, noise),
        psnr=_decibels(20, float(a.max() - a.min()), float(rms)),
        top1=top1,
        top5=top5,
    )


def _decibels(factor: int, signal: float, noise: float) -> float:
    if not noise:
        return DECIBELS
    if not signal:
        return -DECIBELS
    return float(np.clip(factor * np.log10(signal / noise), -DECIBELS, DECIBELS))


def _agreement(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    best = a.reshape(-1, a.shape[-1] if a.ndim else 1)
    other = b.reshape(best.shape)
    wanted = best.argmax(axis=1)
    count = min(CLASSES, other.shape[1])
    among = np.argpartition(-other, count - 1, axis=1)[:, :count] if count < other.shape[1] else None
    within = 1.0 if among is None else float((among == wanted[:, None]).any(axis=1).mean())
    return float((other.argmax(axis=1) == wanted).mean()), within


NAMES: Mapping[str, str] = {
    "cosine": "mean cosine similarity",
    "cosine_min": "the worst sample's cosine similarity",
    "max_abs": "largest absolute error of all samples",
    "p99_abs": "99th percentile of the samples' largest absolute errors",
    "mean_abs": "mean absolute error",
    "max_rel": "largest error, relative to the sample's largest magnitude",
    "mean_rel": "mean error, relative to the sample's largest magnitude",
    "l2": "mean Euclidean distance",
    "l2_max": "largest Euclidean distance",
    "snr": "mean signal to noise ratio in dB",
    "snr_min": "lowest signal to noise ratio in dB",
    "psnr": "mean peak signal to noise ratio in dB",
    "psnr_min": "lowest peak signal to noise ratio in dB",
    "top1_agreement": "how often the best entry is the same",
    "top5_agreement": "how often the reference's best entry is among the best five",
}
"""What is told of all samples together."""
HIGHER_IS_BETTER = frozenset(
    {"cosine", "cosine_min", "snr", "snr_min", "psnr", "psnr_min", "top1_agreement", "top5_agreement"}
)


def summary(samples: list[Measured]) -> Iterator[tuple[str, float]]:
    """The figures of `NAMES` over all samples."""

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(sample, name) for sample in samples])

    yield "cosine", float(column("cosine").mean())
    yield "cosine_min", float(column("cosine").min())
    yield "max_abs", float(column("max_abs").max())
    yield "p99_abs", float(np.percentile(column("max_abs"), 99))
    yield "mean_abs", float(column("mean_abs").mean())
    yield "max_rel", float(column("max_rel").max())
    yield "mean_rel", float(column("mean_rel").mean())
    yield "l2", float(column("l2").mean())
    yield "l2_max", float(column("l2").max())
    for name in ("snr", "psnr"):
        yield name, float(column(name).mean())
        yield f"{name}_min", float(column(name).min())
    yield "top1_agreement", float(column("top1").mean())
    yield "top5_agreement", float(column("top5").mean())


def worst(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The worse of two summaries, figure by figure."""
    return {n: (min if n in HIGHER_IS_BETTER else max)(v, other.get(n, v)) for n, v in reference.items()}
