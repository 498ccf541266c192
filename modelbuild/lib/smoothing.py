"""Smoothing: moving the outliers of an activation into the weights it meets, so that both fit 8 bits.

Channel j of the activation is divided by s_j and row j of every weight it meets is multiplied by it; the product is
unchanged. SmoothQuant (Xiao et al., 2022, arXiv:2211.10438) takes s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) with one
alpha for the whole model. Here the error that rounding will cause is predicted for a family of candidates, and each
activation gets the one with the least. To the first order rounding noise is uniform and independent, so that

    E|error|^2 = dx^2/12 * sum_jk (s_j W_jk)^2  +  sum_k dw_k^2/12 * sum_j E[(x_j / s_j)^2]

where dx is the step of the activation's scale and dw_k that of column k of the weight: nothing has to be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

ALPHAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
"""Candidates for alpha."""
FLOORS = tuple(0.1 * 1.6**i for i in range(9))
"""Candidates for how strongly small channels are raised, of the second family (see `_candidates`)."""
TINY = 1e-6


class Channels(msgspec.Struct, frozen=True):
    """An activation as smoothing sees it: lowest, highest and mean square of each channel, all [K]."""

    low: Any
    high: Any
    power: Any


def factors(
    channels: Channels, weights: Sequence[Any], alpha: float | None, *, per_channel: bool = True
) -> tuple[Any, float]:
    """(s [K] float32, predicted error relative to that without smoothing) for the weights [K, N] it meets.

    `alpha` None chooses by prediction; `per_channel` says whether each column of the weights has a scale. The
    geometric mean of s is 1. A channel that was never anything but zero says nothing of what it needs: it gets the
    median, so that no constant is divided by next to nothing.
    """
    import numpy as np

    joint = np.abs(np.concatenate(list(weights), axis=1))
    energy = np.square(joint).sum(axis=1)
    live = np.maximum(-channels.low, channels.high) > TINY
    if not live.any():
        return np.ones_like(channels.low, dtype=np.float32), 1.0
    candidates = [np.where(live, s, np.median(s[live])) for s in _candidates(channels, joint, energy, alpha)]
    errors = [_predicted(s, channels, joint, energy, per_channel) for s in candidates]
    plain = _predicted(np.ones_like(channels.low), channels, joint, energy, per_channel)
    best = int(np.argmin(errors))
    s = candidates[best] / np.exp(np.log(candidates[best]).mean())
    return s.astype(np.float32), errors[best] / plain if plain > 0 else 1.0


def _candidates(channels: Channels, joint: Any, energy: Any, alpha: float | None) -> Iterator[Any]:
    """SmoothQuant's family; and max|x_j| raised to a floor where that spares the weights.

    The floor's shape is what minimises the predicted error for a given step dx: (E[x_j^2] / sum_k W_jk^2)^(1/4).
    """
    import numpy as np

    reach = np.maximum(np.maximum(-channels.low, channels.high), TINY)
    rows = np.maximum(joint.max(axis=1), TINY)
    for a in ALPHAS if alpha is None else (alpha,):
        yield reach**a / rows ** (1 - a)
    if alpha is not None:
        return
    floor = (np.maximum(channels.power, TINY**2) / np.maximum(energy, TINY**2)) ** 0.25
    floor = floor * np.median(reach / floor)
    for strength in FLOORS:
        yield np.maximum(reach, strength * floor)


def _predicted(s: Any, channels: Channels, joint: Any, energy: Any, per_channel: bool) -> float:
    """The expected squared error of the products, up to a factor that all candidates share."""
    import numpy as np

    step = (max(float((channels.high / s).max()), 0.0) - min(float((channels.low / s).min()), 0.0)) / 255
    columns = (joint * s[:, None]).max(axis=0) / 127
    if not per_channel:
        columns[:] = columns.max()
    return float(step**2 * (energy * np.square(s)).sum() + np.square(columns).sum() * (channels.power / s**2).sum())
