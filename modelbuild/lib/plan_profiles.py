"""Optimization profiles: the shapes that a plan must take, from a recipe's shorthand to a range for every input.

A profile in a recipe is a map. A key is a symbolic dimension of the model (`batch: [1, 8, 32]`: least, best, most), or
an input (`input_ids: {min: [1, 8], opt: [8, 128], max: [32, 512]}`, as in trtexec's `--minShapes` and its like); one
number stands for all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.artifact import Tensor
from modelbuild.errors import ProblemError, problem, suggestion

Range = tuple[int, int, int]


class Shapes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shapes of one input in one profile: the least, the one to tune for, the most."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, int | Range | Shapes]
"""One profile as a recipe writes it."""


def wrong_order(profile: Profile) -> str | None:
    """What is wrong with a profile whatever the model: ranges out of order, negative sizes, uneven ranks; else None."""
    for name, given in profile.items():
        if isinstance(given, Shapes):
            ranks = {len(given.min), len(given.opt), len(given.max)}
            if len(ranks) > 1:
                return f"`{name}`: `min`, `opt` and `max` have different numbers of dimensions"
            ranges: Sequence[Range] = list(zip(given.min, given.opt, given.max, strict=True))
        else:
            ranges = [(given, given, given) if isinstance(given, int) else given]
        for low, best, high in ranges:
            if low < 0:
                return f"`{name}`: a size cannot be {low}"
            if not low <= best <= high:
                return f"`{name}`: {low}, {best}, {high} are not in the order min <= opt <= max"
    return None


def expand(profiles: Sequence[Profile], inputs: Sequence[Tensor]) -> tuple[dict[str, Shapes], ...]:
    """For each profile, the shapes of every input; a `ProblemError` for what does not fit the model.

    A model without dynamic dimensions needs no profile: then the result is one, of its own shapes.
    """
    dynamic = {d: [t.name for t in inputs if d in t.shape] for t in inputs for d in t.shape if isinstance(d, str)}
    if not profiles:
        if dynamic:
            raise _no_profile(dynamic)
        profiles = ({},)
    return tuple(_expanded(profile, index, inputs, dynamic) for index, profile in enumerate(profiles, start=1))


def _no_profile(dynamic: Mapping[str, Sequence[str]]) -> ProblemError:
    example = ", ".join(f"{d}: {_example(d)}" for d in dynamic)
    return problem(
        "the model has dynamic dimensions, and no profile says how large they get",
        dynamic=", ".join(f"{d} ({', '.join(names)})" for d, names in dynamic.items()),
        hint=f"add `profiles: [{{{example}}}]`: least, best and most of each",
    )


def _example(dimension: str) -> str:
    return "[1, 8, 32]" if "batch" in dimension.lower() else "[8, 128, 512]"


def _expanded(
    profile: Profile, index: int, inputs: Sequence[Tensor], dynamic: Mapping[str, Sequence[str]]
) -> dict[str, Shapes]:
    names = {t.name: t for t in inputs}
    sizes: dict[str, Range] = {}
    for key, given in profile.items():
        if key in names:
            sizes = _joined(sizes, _input_ranges(names[key], given, index), key, index)
        elif key in dynamic:
            if isinstance(given, Shapes):
                raise problem(
                    f"profile {index}: `{key}` is a dimension, and takes [min, opt, max]",
                    hint=f"write `{key}: {_example(key)}`",
                )
            one = (given, given, given) if isinstance(given, int) else given
            sizes = _joined(sizes, {key: one}, key, index)
        else:
            raise problem(
                f"profile {index}: the model has no input or dynamic dimension `{key}`",
                inputs=", ".join(f"{t.name} {list(t.shape)}" for t in inputs),
                hint=suggestion(key, [*names, *dynamic]) or f"give {', '.join(dynamic) or 'no profile at all'}",
            )
    missing = {d: users for d, users in dynamic.items() if d not in sizes}
    if missing:
        first = next(iter(missing))
        raise problem(
            f"profile {index} does not say how large `{first}` gets",
            inputs=", ".join(missing[first]),
            missing=", ".join(missing),
            hint=f"add `{first}: {_example(first)}`",
        )
    return {t.name: _shapes(t, sizes) for t in inputs}


def _input_ranges(tensor: Tensor, given: Any, index: int) -> dict[str, Range]:
    """What the shapes of one input say of the model's dimensions."""
    if not isinstance(given, Shapes):
        raise problem(
            f"profile {index}: `{tensor.name}` is an input, and takes whole shapes",
            shape=list(tensor.shape),
            hint="write `{min: [...], opt: [...], max: [...]}`, or ranges of its dimensions by name",
        )
    if len(given.min) != len(tensor.shape):
        raise problem(
            f"profile {index}: `{tensor.name}` has {len(tensor.shape)} dimensions, not {len(given.min)}",
            shape=list(tensor.shape),
        )
    found: dict[str, Range] = {}
    for place, dim in enumerate(tensor.shape):
        sizes = (given.min[place], given.opt[place], given.max[place])
        if isinstance(dim, str):
            found = _joined(found, {dim: sizes}, tensor.name, index)
        elif set(sizes) != {dim}:
            raise problem(
                f"profile {index}: dimension {place} of `{tensor.name}` is fixed at {dim}",
                given=", ".join(map(str, sizes)),
                hint="export the model with this dimension dynamic, or give its size",
            )
    return found


def _joined(known: dict[str, Range], new: Mapping[str, Range], key: str, index: int) -> dict[str, Range]:
    """Both, where they agree: a dimension has one size in all inputs."""
    for dim, sizes in new.items():
        if known.get(dim, sizes) != sizes:
            raise problem(
                f"profile {index} gives `{dim}` two ranges",
                one=list(known[dim]),
                other=f"{list(sizes)} (by `{key}`)",
                hint="a dimension that inputs share has one size",
            )
    return {**known, **new}


def _shapes(tensor: Tensor, sizes: Mapping[str, Range]) -> Shapes:
    ranges = [sizes[d] if isinstance(d, str) else (d, d, d) for d in tensor.shape]
    low, best, high = zip(*ranges, strict=True) if ranges else ((), (), ())
    return Shapes(tuple(low), tuple(best), tuple(high))
