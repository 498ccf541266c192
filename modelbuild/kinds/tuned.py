"""The best model that a search over options finds: each trial is made as any target is, measured, and compared.

The first candidate is the model of `from` as the recipe has it. For each trial the targets in `stages` get other
options out of `space`, and what is made of them down to `from` (and `benchmark`) is built with these, or taken from the
store where it was built before. So a search that was cut off goes on where it was, and the recipe can be given the
options that won without a build.

```yaml
targets:
  int8:     {kind: int8, from: fused, calibration: texts}
  verified: {kind: verified, from: int8, against: onnx, data: heldout, require: {cosine: {min: 0.9}}}
  speed:    {kind: benchmark, from: int8, baseline: onnx, batch: [1], sequence: [128]}
  best:
    kind: tuned
    from: verified
    benchmark: speed
    stages: [int8]
    space:
      int8.calibrate: [minmax, percentile, entropy]
      int8.smooth: {low: 0.3, high: 0.9}
    trials: 20
    by:
      - {metric: cosine, at_least: 0.998}
      - {metric: latency_p50, goal: min}
```

`space` names an option as `target.option`; it may have the values of a list, or numbers from `low` to `high` (whole
ones where both are; by `step`, or on a `log` scale). [Optuna](https://optuna.org) chooses what to try: `tpe` learns
from what was seen, `random` does not, and `grid` tries all (a range needs a `step` then, or whole numbers). `by` is as
[`ranked`](ranked.md) has it, with at least one goal; the search sees all goals, and the best is chosen by their order.

The search ends after `trials`, when everything was tried, after `time_limit_seconds`, when what runs is let finish, or
when the best so far has all that `until` says. A trial that cannot be built, or whose model a `verified` refuses, is
out, and the table says why. Where the recipe's own options fail there is nothing to start from: let `verified` require
less, and put the rest in `by`.

`tuned.json`, beside the model, has each candidate's options, figures, rank and why it is not the first. The search is
the same each time (`seed`) but for what a time limit cuts off.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.kind import Context, Lineage, Named, Ref, SpecError, Varied
from modelbuild.lib import figures
from modelbuild.lib.figures import By
from modelbuild.lib.ranking import Criterion, Place
from modelbuild.lib.search import Outcome, Range, Sampler

VERSION = 1
TOOLS = {"optuna": "quality"}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()

TABLE = "tuned.json"
AS_IT_IS = "as the recipe has it"
MOST_OF_GRID = 100_000
Choices = Annotated[tuple[Any, ...], Meta(min_length=1)]


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Lineage(), Meta(description="The model, as the recipe has it.")] = msgspec.field(name="from")
    stages: Annotated[
        list[Ref], Varied(), Lineage(), Named(), Meta(min_length=1, description="The targets whose options are tried.")
    ]
    space: Annotated[
        dict[str, Choices | Range],
        Meta(min_length=1, description="`target.option` -> its values, or `low`, `high`, `step`, `log`."),
    ]
    by: Annotated[
        tuple[By, ...],
        Meta(min_length=1, description="Figures by priority: `metric`, with `goal`, `at_least`, `at_most`, `at`."),
    ]
    benchmark: (
        Annotated[Ref, Lineage(), Meta(description="A target of kind `benchmark` that measures the model.")] | None
    ) = None
    sampler: Annotated[Sampler, Meta(description="How Optuna chooses what to try.")] = "tpe"
    trials: Annotated[int, Meta(ge=1, description="The most that is tried.")] = 20
    until: Annotated[
        tuple[By, ...], Meta(description="Enough: `metric` with `at_least` or `at_most`; a search ends when all hold.")
    ] = ()
    time_limit_seconds: (
        Annotated[
            float,
            Meta(gt=0, description="After these, no trial starts; what a search finds then depends on the machine."),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Of what is drawn.")] = 0

    def __post_init__(self) -> None:
        for field, given in (("by", self.by), ("until", self.until)):
            for each in given:
                if wrong := each.wrong(benchmark=self.benchmark is not None):
                    raise SpecError(wrong[0], field=field, hint=wrong[1])
        if not any(each.goal for each in self.by):
            raise SpecError("nothing in `by` is a goal", field="by", hint="say `goal: min` or `goal: max`")
        for each in self.until:
            if each.goal is not None:
                hint = "say `at_least` or `at_most`"
                raise SpecError(f"`{each.metric}`: a search cannot end at a goal", field="until", hint=hint)
        for name, values in self.space.items():
            self._require_axis(name, values)
        if self.sampler == "grid":
            self._require_grid()

    def _require_axis(self, name: str, values: tuple[Any, ...] | Range) -> None:
        stage, dot, _ = name.rpartition(".")
        if not dot or stage not in self.stages:
            hint = f"write `target.option`, with a target of `stages`: {', '.join(self.stages)}"
            raise SpecError(f"`{name}` is no option of a target in `stages`", field="space", hint=hint)
        if isinstance(values, Range):
            if wrong := values.wrong():
                raise SpecError(f"`{name}`: {wrong}", field="space")
        elif len({msgspec.json.encode(v) for v in values}) < len(values):
            raise SpecError(f"`{name}` has a value twice", field="space")

    def _require_grid(self) -> None:
        size = 1
        for name, values in self.space.items():
            listed = values.grid() if isinstance(values, Range) else values
            if listed is None:
                raise SpecError(f"`{name}` has no grid", field="space", hint="give a `step`, or a list")
            size *= len(listed)
        if size > MOST_OF_GRID:
            hint = "search by `sampler: tpe`"
            raise SpecError(f"the grid has {size:,} points, more than {MOST_OF_GRID:,}", field="space", hint=hint)


def tries(spec: Spec) -> dict[str, dict[str, Sequence[Any]]]:
    """The options that are tried, with their values or the ends of their ranges."""
    found: dict[str, dict[str, Sequence[Any]]] = {stage: {} for stage in spec.stages}
    for name, values in spec.space.items():
        stage, _, option = name.rpartition(".")
        found[stage][option] = (values.low, values.high) if isinstance(values, Range) else values
    return found


class Candidate(msgspec.Struct, frozen=True):
    """A model that was made: what it is called, the options that were tried for it, and its figures."""

    name: str
    options: dict[str, Any]
    model: Artifact
    figures: dict[str, float]


class Lost(msgspec.Struct, frozen=True):
    """A trial without a model that counts."""

    name: str
    options: dict[str, Any]
    why: str


def build(spec: Spec, ctx: Context) -> None:
    import time

    from modelbuild.lib import ranking, search

    criteria = [each.criterion for each in spec.by]
    asked = search.Search(
        spec.space, spec.sampler, ["minimize" if g.goal == "min" else "maximize" for g in criteria if g.goal], spec.seed
    )
    first = Candidate(AS_IT_IS, {}, ctx.input(), _figures(spec, AS_IT_IS, ctx.inputs))
    ctx.log(f"{AS_IT_IS}: {_shown(first.figures)}")
    candidates, lost = {first.name: first}, list[Lost]()
    asked.know(_own_options(spec, ctx), _outcome(first, criteria))
    started = time.monotonic()

    def ranked() -> list[Place]:
        return ranking.order({c.name: c.figures for c in candidates.values()}, criteria)

    for number in itertools.count(1):
        ctx.progress(number - 1, spec.trials, "trials")
        if (ended := _ended(spec, number, candidates[ranked()[0].name], time.monotonic() - started)) is not None:
            break
        values = asked.next()
        if values is None:
            ended = "everything was tried"
            break
        name = ", ".join(f"{option}={_text(value)}" for option, value in values.items())
        try:
            made = ctx.vary(f"trial {number}", _changes(values))
            figures.require_alike({AS_IT_IS: first.model, name: made["from"][0]})
            candidate = Candidate(name, values, made["from"][0], _figures(spec, name, made))
        except ProblemError as e:
            why = "; ".join((e.problems[0].title, *(f"{k}: {v}" for k, v in e.problems[0].facts[:1])))
            lost.append(Lost(name, values, why))
            ctx.log(f"trial {number}: {name}: {e.problems[0].title}")
            asked.tell(None)
            continue
        candidates[name] = candidate
        ctx.log(f"trial {number}: {name}: {_shown(candidate.figures)}")
        asked.tell(_outcome(candidate, criteria))
    ctx.log(f"the search ended: {ended}")
    _finish(spec, ctx, candidates, lost, ranked())


def _ended(spec: Spec, number: int, best: Candidate, elapsed_s: float) -> str | None:
    """Why no trial starts any more."""
    if spec.until and all(each.criterion.misses(best.figures[each.label]) is None for each in spec.until):
        return "the best is good enough"
    if number > spec.trials:
        return f"{spec.trials} trials were made"
    if spec.time_limit_seconds is not None and elapsed_s > spec.time_limit_seconds:
        return f"the time limit of {spec.time_limit_seconds:g} s is over"
    return None


def _own_options(spec: Spec, ctx: Context) -> dict[str, Any]:
    """The values that the recipe has for the options in `space`."""
    own = dict(zip(spec.stages, ctx.options("stages"), strict=True))
    return {name: own[stage][option] for name in spec.space for stage, _, option in [name.rpartition(".")]}


def _figures(spec: Spec, name: str, made: Mapping[str, tuple[Artifact, ...]]) -> dict[str, float]:
    """All figures that the recipe asks for, by their labels."""
    (model,) = made["from"]
    table = figures.benchmark(made["benchmark"][0]) if spec.benchmark else None
    return {each.label: figures.of(each, name, model, table) for each in (*spec.by, *spec.until)}


def _outcome(candidate: Candidate, criteria: Sequence[Criterion]) -> Outcome:
    found = candidate.figures
    bound = [c for c in criteria if c.at_least is not None or c.at_most is not None]
    missed = {c.label: c.short_of(found[c.label]) for c in bound}
    return Outcome(tuple(found[c.label] for c in criteria if c.goal), missed)


def _changes(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        stage, _, option = name.rpartition(".")
        changes.setdefault(stage, {})[option] = value
    return changes


def _finish(
    spec: Spec, ctx: Context, candidates: Mapping[str, Candidate], lost: Sequence[Lost], places: Sequence[Place]
) -> None:
    """Pass the best through, with the table of all."""
    from modelbuild.lib import passing

    if places[0].rank is None:
        facts = (*((p.name, p.why) for p in places[:10]), *((each.name, each.why) for each in lost[:10]))
        hint = "lower a threshold, widen the space, or allow more trials"
        raise ProblemError(Problem("no trial meets the thresholds", facts=facts, hint=hint))
    best = candidates[places[0].name]
    ctx.log(f"the best of {len(candidates) + len(lost)}: {best.name}")
    ctx.metric("trials", len(candidates) + len(lost) - 1)
    passing.link(ctx, best.model, TABLE)
    table = {
        "by": msgspec.to_builtins(spec.by),
        "best": best.options,
        "candidates": [{"options": candidates[p.name].options, **msgspec.to_builtins(p)} for p in places],
        "failed": msgspec.to_builtins(lost),
    }
    (ctx.out / TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    described = best.model.descriptor
    ctx.describe(msgspec.structs.replace(described, extras=tuple(dict.fromkeys([*described.extras, TABLE]))))


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {value:g}" for label, value in found.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
