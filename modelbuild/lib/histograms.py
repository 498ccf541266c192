"""Ranges from histograms: the percentile and entropy calibrations, streamed over a second pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BINS = 2048
LEVELS = 128
"""Positive levels of int8, which the entropy calibration coarsens a histogram to."""


class Histogram:
    """How often values fall into `BINS` equal bins from `low` to `high`, counted batch by batch."""

    def __init__(self, low: float, high: float) -> None:
        import numpy as np

        self.low, self.high = low, max(high, low + 1e-12)
        self.counts = np.zeros(BINS, dtype=np.int64)

    def add(self, values: Any) -> None:
        """Count an array of floats, none of them outside [low, high] but by rounding."""
        import numpy as np

        factor = np.float32(BINS / (self.high - self.low))
        places = ((values.reshape(-1) - np.float32(self.low)) * factor).astype(np.int32)
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def edge(self, bin_: int) -> float:
        return self.low + (self.high - self.low) * bin_ / BINS

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that holds `percent` of all values, the rest cut off half at each end (ONNX Runtime's rule)."""
        import numpy as np

        share = np.cumsum(self.counts) / max(int(self.counts.sum()), 1)
        cut = (1 - percent / 100) / 2
        return self.edge(int(np.searchsorted(share, cut))), self.edge(int(np.searchsorted(share, 1 - cut)) + 1)

    def entropy(self) -> tuple[float, float]:
        """The range [-t, t] within [low, high] whose coarsening to 128 levels loses least (TensorRT's rule).

        Kullback-Leibler divergence between |values| clipped at t and the same at 128 levels, over thresholds t
        (Migacz, "8-bit inference with TensorRT", 2017).
        """
        folded, width = self._folded()
        best, least = BINS, float("inf")
        for end in range(LEVELS, BINS + 1, 16):
            divergence = _divergence(folded, end)
            if divergence < least:
                best, least = end, divergence
        threshold = best * width
        return max(self.low, -threshold), min(self.high, threshold)

    def _folded(self) -> tuple[Any, float]:
        """Counts of |value| in `BINS` bins, and a bin's width."""
        import numpy as np

        reach = max(abs(self.low), abs(self.high))
        centers = np.abs(self.low + (np.arange(BINS) + 0.5) * (self.high - self.low) / BINS)
        places = np.minimum((centers / reach * BINS).astype(np.int64), BINS - 1)
        return np.bincount(places, weights=self.counts, minlength=BINS), reach / BINS


def _divergence(counts: Any, end: int) -> float:
    """KL divergence between the first `end` bins, the rest clipped into the last, and their 128-level coarsening."""
    import numpy as np

    p = counts[:end].copy()
    filled = p > 0
    p[-1] += counts[end:].sum()
    group = np.arange(end) * LEVELS // end
    sums = np.bincount(group, weights=counts[:end], minlength=LEVELS)
    members = np.bincount(group, weights=filled, minlength=LEVELS)
    q = np.where(filled, (sums / np.maximum(members, 1))[group], 0.0)
    seen = p > 0
    if not q.sum() or not p.sum():
        return float("inf")
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def ranges(histograms: Mapping[str, Histogram], method: str, percent: float) -> dict[str, tuple[float, float]]:
    """The range of each activation by `method`: `percentile` or `entropy`."""
    return {n: h.percentile(percent) if method == "percentile" else h.entropy() for n, h in histograms.items()}
