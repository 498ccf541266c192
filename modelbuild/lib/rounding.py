"""From floats to 8 bits: scales, zero points and rounding, all vectorised in numpy."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Bits = Literal["int8", "uint8"]
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


class Grid(msgspec.Struct, frozen=True):
    """What a code q stands for: (q - zero_point) * scale. Both are arrays, of shape [] or one per channel."""

    scale: Any
    zero_point: Any

    def rounded(self, values: Any) -> Any:
        """The values as codes; the last axis of `values` is the one that channels run along."""
        import numpy as np

        low, high = LIMITS[str(self.zero_point.dtype)]
        codes = np.divide(values, self.scale, dtype=np.float32)
        np.rint(codes, out=codes)
        codes += self.zero_point
        return np.clip(codes, low, high, out=codes).astype(self.zero_point.dtype)

    def floats(self, codes: Any) -> Any:
        """What codes stand for, float32."""
        import numpy as np

        return (codes.astype(np.float32) - self.zero_point) * self.scale


def activation_grid(low: float, high: float, bits: Bits, symmetric: bool) -> Grid:
    """The grid of an activation in [low, high]; zero is always a code, since padding and ReLU make it often."""
    import numpy as np

    low, high = min(low, 0.0), max(high, 0.0)
    least, most = LIMITS[bits]
    tiny = float(np.finfo(np.float32).tiny)
    if symmetric:
        reach = max(-low, high)
        scale = np.float32(max(reach / 127 if bits == "int8" else 2 * reach / 255, tiny))
        return Grid(np.asarray(scale), np.asarray(0 if bits == "int8" else 128, dtype=bits))
    scale = np.float32(max((high - low) / 255, tiny))
    zero = np.clip(np.rint(least - low / scale), least, most)
    return Grid(np.asarray(scale), np.asarray(zero, dtype=bits))


def weight_grid(weight: Any, bits: Bits, symmetric: bool, per_channel: bool, reduce_range: bool) -> Grid:
    """The grid of a weight whose channels run along its last axis.

    `reduce_range` leaves one bit unused, for CPUs whose 8-bit products saturate (AVX2 and AVX-512 without VNNI).
    """
    import numpy as np

    axes = tuple(range(weight.ndim - 1)) if per_channel else None
    low, high = np.minimum(weight.min(axis=axes), 0), np.maximum(weight.max(axis=axes), 0)
    tiny = np.finfo(np.float32).tiny
    if symmetric:
        reach = np.maximum(-low, high)
        levels = 63.5 if reduce_range else 127.5
        scale = np.maximum(reach / (levels - 0.5), tiny).astype(np.float32)
        return Grid(scale, np.full(scale.shape, 0 if bits == "int8" else 128, dtype=bits))
    least, most = LIMITS[bits]
    steps = (most - least) // 2 if reduce_range else most - least
    scale = np.maximum((high - low) / steps, tiny).astype(np.float32)
    zero = np.clip(np.rint(least - low / scale), least, most).astype(bits)
    return Grid(scale, zero)
