"""Searching a space of options by Optuna: which to try next, told how good those before were.

Optuna is asked and told (`Study.ask`, `Study.tell`), in memory and with a seed: the same answers give the same search
again, so that one that was cut off goes on where its trials were kept.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

Sampler = Literal["tpe", "random", "grid"]
MOST_REPEATS = 100
"""Draws in a row that were tried before, after which a search has nothing new."""


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers from `low` to `high`, both included: whole ones where all given are; on a grid of `step`; `log` scale."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        return all(isinstance(n, int) for n in (self.low, self.high, 1 if self.step is None else self.step))

    def wrong(self) -> str | None:
        """What does not fit together in it."""
        if not self.low < self.high:
            return "`low` is not less than `high`"
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            return "`step` is not between 0 and the range"
        if self.log and (self.low <= 0 or self.step is not None):
            return "`log` needs a `low` above 0, and no `step`"
        return None

    def grid(self) -> tuple[int | float, ...] | None:
        """All its numbers, or None where they are not to be counted."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        count = int((self.high - self.low) / step * (1 + 1e-12))
        return tuple(self.low + i * step for i in range(count + 1))


Space: TypeAlias = Mapping[str, tuple[Any, ...] | Range]
"""Name of an option -> the values it may have."""
Values: TypeAlias = dict[str, Any]
"""Name of an option -> the value to try."""


class Outcome(msgspec.Struct, frozen=True):
    """How good something was: its figures by the goals, and by how much it misses each threshold (0: it does not)."""

    goals: tuple[float, ...]
    missed: Mapping[str, float]


class Search:
    """Says what to try next. `directions` are those of the goals in `Outcome`."""

    def __init__(
        self, space: Space, sampler: Sampler, directions: Sequence[Literal["minimize", "maximize"]], seed: int
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seen = space, set[str]()
        self._optuna: Any = optuna
        self._distributions = {name: _distribution(values) for name, values in space.items()}
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self._study: Any = None
        self._grid: Iterator[Values] | None = _shuffled_grid(space, seed) if sampler == "grid" else None
        if self._grid is None:
            self._study = optuna.create_study(directions=list(directions), sampler=samplers[sampler](seed=seed))
        self._asked: Any = None

    def know(self, values: Values, outcome: Outcome) -> None:
        """Tell of something that was tried before the search began, which may lie outside the space."""
        self.seen.add(_text(values))
        if self._study is None or not all(_holds(self.space[name], value) for name, value in values.items()):
            return
        self._study.enqueue_trial({name: _drawn(self.space[name], value) for name, value in values.items()})
        self._asked = self._study.ask(self._distributions)
        self.tell(outcome)

    def next(self) -> Values | None:
        """What to try now, nothing twice; None where there is nothing more. `tell` is to follow."""
        if self._grid is not None:
            return next((v for v in self._grid if self._is_new(v)), None)
        for _ in range(MOST_REPEATS):
            self._asked = self._study.ask(self._distributions)
            values = {name: _value(self.space[name], drawn) for name, drawn in self._asked.params.items()}
            if self._is_new(values):
                return values
            self.tell(None)
        return None

    def _is_new(self, values: Values) -> bool:
        text = _text(values)
        if text in self.seen:
            return False
        self.seen.add(text)
        return True

    def tell(self, outcome: Outcome | None) -> None:
        """How good what `next` said was; None where it failed."""
        if self._study is None:
            return
        if outcome is None:
            self._study.tell(self._asked, state=self._optuna.trial.TrialState.FAIL)
            return
        for name, amount in outcome.missed.items():
            self._asked.set_constraint(name, amount)
        self._study.tell(self._asked, list(outcome.goals))


def _shuffled_grid(space: Space, seed: int) -> Iterator[Values]:
    """Every combination, in an order that covers the space evenly however soon it ends."""
    axes = [values.grid() if isinstance(values, Range) else values for values in space.values()]
    every = list(itertools.product(*(axis or () for axis in axes)))
    random.Random(seed).shuffle(every)
    return (dict(zip(space, each, strict=True)) for each in every)


def _distribution(values: tuple[Any, ...] | Range) -> Any:
    from optuna import distributions

    if not isinstance(values, Range):
        return distributions.CategoricalDistribution([_text(v) for v in values])
    if values.whole:
        return distributions.IntDistribution(
            int(values.low), int(values.high), log=values.log, step=int(values.step or 1)
        )
    return distributions.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _text(value: Any) -> str:
    """Optuna's categories are texts and numbers; ours may be lists."""
    return msgspec.json.encode(value, order="deterministic").decode()


def _value(values: tuple[Any, ...] | Range, drawn: Any) -> Any:
    return drawn if isinstance(values, Range) else msgspec.json.decode(drawn)


def _drawn(values: tuple[Any, ...] | Range, value: Any) -> Any:
    return value if isinstance(values, Range) else _text(value)


def _holds(values: tuple[Any, ...] | Range, value: Any) -> bool:
    if not isinstance(values, Range):
        return _text(value) in map(_text, values)
    if isinstance(value, bool) or not isinstance(value, int | float) or not values.low <= value <= values.high:
        return False
    grid = values.grid()
    return grid is None or value in grid
