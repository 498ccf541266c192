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

ALPHAS = tuple(a / 20 for a in range(8, 21))
"""Candidates for alpha: 0.4 to 1."""
FLOORS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)
"""Candidates for how strongly small channels are raised, of the second family (see `_candidates`)."""
COLUMNS = 128
"""Columns of a weight that the prediction looks at, evenly spread."""
TINY = 1e-6


class Channels(msgspec.Struct, frozen=True):
    """An activation as smoothing sees it: lowest, highest and mean square of each channel, all [K]."""

    low: Any
    high: Any
    power: Any


def factors(channels: Channels, weights: Sequence[Any], alpha: float | None) -> tuple[Any, float]:
    """(s [K] float32, predicted error relative to that without smoothing) for the weights [K, N] it meets.

    `alpha` None chooses by prediction. The geometric mean of s is 1.
    """
    import numpy as np

    columns = [_few_columns(np.asarray(w)) for w in weights]
    joint = np.abs(np.concatenate(columns, axis=1))
    energy = np.square(joint).sum(axis=1)
    ones = np.ones_like(channels.low)
    plain = _predicted(ones, channels, joint, energy)
    best, least = ones, plain
    for candidate in _candidates(channels, joint, energy, alpha):
        error = _predicted(candidate, channels, joint, energy)
        if alpha is not None or error < least:
            best, least = candidate, error
    return (best / np.exp(np.log(best).mean())).astype(np.float32), least / plain if plain > 0 else 1.0


def _few_columns(weight: Any) -> Any:
    step = max(1, weight.shape[1] // COLUMNS)
    return weight[:, ::step]


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


def _predicted(s: Any, channels: Channels, joint: Any, energy: Any) -> float:
    """The expected squared error of the products, up to a factor that all candidates share."""
    import numpy as np

    step = (max(float((channels.high / s).max()), 0.0) - min(float((channels.low / s).min()), 0.0)) / 255
    columns = (joint * s[:, None]).max(axis=0) / 127
    return float(step**2 * (energy * np.square(s)).sum() + np.square(columns).sum() * (channels.power / s**2).sum())
