"""Do two graphs compute the same? They run on the same inputs of several shapes, with padding on either side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.artifact import Tensor
from modelbuild.errors import ProblemError, problem
from modelbuild.lib import sessions

SHAPES = ((1, 1), (1, 7), (2, 16), (3, 33))
"""(first symbolic dimension, every other one): batch 1, odd lengths, and batches with padding."""


class Difference(msgspec.Struct, frozen=True):
    """The largest difference seen: of which output, at what, and relative to that output's largest magnitude."""

    output: str
    case: str
    relative: float


def cases(inputs: Sequence[Tensor], *, pad_left: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, inputs) for every shape of `SHAPES` that the inputs can have; a mask gets padding, right and left."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for seed, (batch, length) in enumerate(SHAPES):
        feeds = sessions.random_inputs(inputs, sizes(inputs, batch, length), seed)
        shapes = tuple(a.shape for a in feeds.values())
        if shapes in seen:
            continue
        seen.add(shapes)
        yield f"{batch}x{length}", feeds
        masks = [n for n, a in feeds.items() if "mask" in n and a.ndim == 2 and a.shape[1] > 2]
        for side in ("right", "left") if pad_left else ("right",):
            if masks:
                yield f"{batch}x{length}, padded {side}", {**feeds, **{n: _padded(feeds[n], side) for n in masks}}


def sizes(inputs: Sequence[Tensor], batch: int, length: int) -> Mapping[str, int]:
    """A size for each symbolic dimension: `batch` for those that come first somewhere, `length` for the others, and
    half of it for a cache (`past_...`), which is empty at length 1."""
    first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], str)}
    named = {part for t in inputs for d in t.shape if isinstance(d, str) for part in d.split(" + ")}
    return {d: batch if d in first else length // 2 if d.startswith("past") else length for d in named}


def _padded(mask: Any, side: str) -> Any:
    """A mask [batch, length] whose rows have 0, 1/3, 2/3, ... of their places masked at one side."""
    mask = mask.copy()
    for row in range(len(mask)):
        gone = (row + 1) % 3 * mask.shape[1] // 3
        if gone:
            mask[row, -gone:] = 0
            if side == "left":
                mask[row] = mask[row, ::-1]
    return mask


def largest_difference(
    reference: Any, other: Any, inputs: Sequence[Tensor], *, pad_left: bool = True, shown_only: bool = False
) -> Difference:
    """The largest difference of two sessions over all `cases`, NaN and infinities counting as infinite.

    With `shown_only`, places that the mask hides are not compared: what stands there is made of nothing, and another
    precision makes something else of that. Shapes that the reference itself cannot run are passed over; none left is a
    `ProblemError`.
    """
    import numpy as np

    names = [o.name for o in reference.get_outputs()]
    worst, ran = Difference(names[0], "none", 0.0), 0
    refused: ProblemError | None = None
    for case, feeds in cases(inputs, pad_left=pad_left):
        try:
            with sessions.failures("the input model does not run"):
                expected = reference.run(names, feeds)
        except ProblemError as e:
            refused = e
            continue
        with sessions.failures(f"the new model does not run on {case}"):
            got = other.run(names, feeds)
        ran += 1
        mask = feeds.get("attention_mask") if shown_only else None
        for name, *both in zip(names, expected, got, strict=True):
            a, b = (shown(np.asarray(each), mask) for each in both)
            relative = relative_difference(a, b)
            if relative > worst.relative or worst.case == "none":
                worst = Difference(name, case, relative)
    if not ran:
        raise refused or problem("the model could not be run at any shape")
    return worst


def shown(array: Any, mask: Any) -> Any:
    """An output with zeros at the places that a mask [batch, places] hides.

    The output is [batch, places, ...] of the mask's last places, or a cache [batch, heads, places, size] of all.
    """
    if mask is None or mask.all() or array.ndim < 2 or array.shape[0] != mask.shape[0]:
        return array
    array = array.copy()
    if array.ndim == 4 and array.shape[2] == mask.shape[1]:
        array.swapaxes(1, 2)[mask == 0] = 0
    elif array.shape[1] <= mask.shape[1] and (array.ndim == 3 or array.shape[1] == mask.shape[1]):
        array[mask[:, -array.shape[1] :] == 0] = 0
    return array


def relative_difference(a: Any, b: Any) -> float:
    """max |a - b| over max |a| (at least 1e-6); infinite for other shapes or for values that are not finite."""
    import numpy as np

    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    if not a.size:
        return 0.0
    if not (np.isfinite(a) == np.isfinite(b)).all():
        return float("inf")
    finite = np.isfinite(a)
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(float(np.abs(a[finite]).max()), 1e-6))


def cosine(a: Any, b: Any) -> float:
    """Cosine similarity of two arrays taken as one vector each; 0 for other shapes or values that are not finite.

    Of two arrays of integers: the share of places that agree.
    """
    import numpy as np

    if a.shape != b.shape:
        return 0.0
    if a.dtype.kind != "f":
        return float((a == b).mean()) if a.size else 1.0
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm == 0:
        return float(not x.any() and not y.any())
    found = float(x @ y) / norm
    return found if np.isfinite(found) else 0.0
