"""Putting candidates in order: thresholds first, then goals by priority; and which of them no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Goal = Literal["min", "max"]


class Criterion(msgspec.Struct, frozen=True):
    """A figure by its label, what it must be, and which way it is better (None: it only must hold)."""

    label: str
    goal: Goal | None = None
    at_least: float | None = None
    at_most: float | None = None

    def misses(self, value: float) -> str | None:
        """Why a value is out of the question, or None."""
        if self.at_least is not None and not value >= self.at_least:
            return f"{self.label} {value:g} is not at least {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"{self.label} {value:g} is not at most {self.at_most:g}"
        return None

    def short_of(self, value: float) -> float:
        """By how much a value misses the thresholds; 0 where it does not."""
        below = self.at_least - value if self.at_least is not None else 0.0
        above = value - self.at_most if self.at_most is not None else 0.0
        return max(below, above, 0.0)

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a < b if self.goal == "min" else a > b


class Place(msgspec.Struct, frozen=True):
    """A candidate's place: `rank` from 1 (None: a threshold was missed), and why it is not the first."""

    name: str
    rank: int | None
    figures: dict[str, float]
    pareto: bool
    why: str


def order(figures: Mapping[str, Mapping[str, float]], criteria: Sequence[Criterion]) -> list[Place]:
    """The candidates, the best first: those that miss a threshold come last, in the order they were given.

    Of two, the better is who is better by the first goal in which they differ. On the Pareto front is who meets the
    thresholds and is beaten by no other in one goal without beating it in another.
    """
    missed = {name: [why for c in criteria if (why := c.misses(values[c.label]))] for name, values in figures.items()}
    goals = [c for c in criteria if c.goal]
    fit = [name for name in figures if not missed[name]]
    fit.sort(key=lambda name: [figures[name][c.label] * (1 if c.goal == "min" else -1) for c in goals])
    places = []
    for rank, name in enumerate(fit, 1):
        beaten_by = [other for other in fit if _dominates(figures[other], figures[name], goals)]
        places.append(
            Place(name, rank, dict(figures[name]), not beaten_by, _why(figures, fit[0], name, goals, beaten_by))
        )
    places += [Place(n, None, dict(figures[n]), False, "; ".join(missed[n])) for n in figures if missed[n]]
    return places


def _dominates(a: Mapping[str, float], b: Mapping[str, float], goals: Sequence[Criterion]) -> bool:
    no_worse = all(not c.better(b[c.label], a[c.label]) for c in goals)
    return no_worse and any(c.better(a[c.label], b[c.label]) for c in goals)


def _why(
    figures: Mapping[str, Mapping[str, float]],
    best: str,
    name: str,
    goals: Sequence[Criterion],
    beaten_by: Sequence[str],
) -> str:
    if name == best:
        return "the best"
    for c in goals:
        mine, theirs = figures[name][c.label], figures[best][c.label]
        if mine != theirs:
            word = f"{c.label} {mine:g} against {theirs:g} of {best}"
            return word if not beaten_by else f"{word}; {beaten_by[0]} is no worse in any goal"
    return f"equal to {best}, which was named before it"
