"""The best of several models, by figures that were measured; the artifact is that model, its files linked.

Candidates that miss a threshold (`at_least`, `at_most`) are out. The others are put in order by the goals (`goal: min`
or `max`) in the order in which `by` has them: the second counts where the first is equal. To weigh one against another,
make one a threshold. Figures are those of the models' descriptors, which `verified` fills (`cosine`, `accuracy`, ...),
`size`, in bytes, and with `benchmark` those of a target of that kind that measured the same models: `latency_p50` and
its kin, `throughput`, `speedup`, `load_s` and `peak_rss_bytes`, in the cell that `at` names.

```yaml
targets:
  int8:     {kind: int8, from: fused, calibration: texts, matrix: {calibrate: [minmax, percentile]}}
  verified: {kind: verified, from: int8, against: onnx, data: heldout, require: {cosine: {min: 0.99}}}
  speed:    {kind: benchmark, from: int8, baseline: onnx}
  best:
    kind: ranked
    from: verified
    benchmark: speed
    by:
      - {metric: cosine, at_least: 0.995}
      - {metric: latency_p50, at: {batch: 1, sequence: 128}, goal: min}
      - {metric: size, goal: min}
```

`models_rank.json`, beside the model, has every candidate's rank, figures, why it is not the first, and whether it is on
the Pareto front: no other is as good in all goals and better in one.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError, problem, suggestion
from modelbuild.kind import Context, Named, Ref, SpecError

VERSION = 1
TOOLS: dict[str, str] = {}
HARDWARE = ()
RESOURCES = ()

TABLE = "models_rank.json"
OF_CELL = (
    *("latency_mean", "latency_sd", "latency_min", "latency_max", "latency_p50", "latency_p90", "latency_p95"),
    *("latency_p99", "throughput", "speedup"),
)
OF_MODEL = ("load_s", "peak_rss_bytes")


class At(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cell of the benchmark; what is left out must be the same in all of its cells."""

    batch: int | None = None
    sequence: int | None = None
    threads: int | None = None


class By(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure, what it must be, and which way it is better."""

    metric: str
    goal: Literal["min", "max"] | None = None
    at_least: float | None = None
    at_most: float | None = None
    at: At = At()


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref | list[Ref], Named(), Meta(description="The candidates.")] = msgspec.field(name="from")
    by: Annotated[
        tuple[By, ...],
        Meta(min_length=1, description="Figures by priority: `metric`, with `goal`, `at_least`, `at_most`, `at`."),
    ]
    benchmark: Annotated[Ref | None, Meta(description="A target of kind `benchmark` that measured the candidates.")] = (
        None
    )

    def __post_init__(self) -> None:
        for each in self.by:
            if each.goal is None and each.at_least is None and each.at_most is None:
                hint = "say `goal: min`, `goal: max`, or a threshold"
                raise SpecError(f"`{each.metric}` has neither a goal nor a threshold", field="by", hint=hint)
            if each.metric in (*OF_CELL, *OF_MODEL) and self.benchmark is None:
                raise SpecError(f"`{each.metric}` needs a `benchmark`", field="by")
            if each.at != At() and each.metric not in OF_CELL:
                raise SpecError(
                    f"`{each.metric}` is no figure of a benchmark's cell", field="by", hint="leave out `at`"
                )


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import passing, ranking

    models = dict(zip(ctx.names("from"), ctx.inputs["from"], strict=True))
    _require_alike(models)
    table = _benchmark(ctx) if spec.benchmark else None
    figures: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        figures[name] = {_label(each): _figure(each, name, model, table) for each in spec.by}
    criteria = [ranking.Criterion(_label(b), b.goal, b.at_least, b.at_most) for b in spec.by]
    places = ranking.order(figures, criteria)
    for place in places:
        shown = ", ".join(f"{label} {value:g}" for label, value in place.figures.items())
        ctx.log(f"{place.rank or 'out'}. {place.name}: {shown} ({place.why})")
    if places[0].rank is None:
        facts = tuple((place.name, place.why) for place in places)
        hint = "lower a threshold, or add candidates"
        raise ProblemError(Problem("no candidate meets the thresholds", facts=facts, hint=hint))
    best = models[places[0].name]
    passing.link(ctx, best, TABLE)
    ranks = {"by": msgspec.to_builtins(spec.by), "models": msgspec.to_builtins(places)}
    if table is not None:
        ranks["environment"] = table["environment"]
    (ctx.out / TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(ranks), indent=2) + b"\n")
    extras = tuple(dict.fromkeys([*best.descriptor.extras, TABLE]))
    ctx.describe(msgspec.structs.replace(best.descriptor, extras=extras))


def _label(each: By) -> str:
    """`latency_p50 at batch 1, sequence 128`."""
    cell = [f"{f} {v}" for f, v in msgspec.structs.asdict(each.at).items() if v is not None]
    return f"{each.metric} at {', '.join(cell)}" if cell else each.metric


def _require_alike(models: dict[str, Artifact]) -> None:
    """A `ProblemError` unless all candidates could stand in for each other."""
    first, *others = models
    reference = _interface(models[first])
    for name in others:
        if (own := _interface(models[name])) != reference:
            facts: tuple[tuple[str, str], ...] = ((first, reference), (name, own))
            hint = "candidates have one task, and inputs and outputs of the same names"
            raise ProblemError(Problem(f"`{name}` could not stand in for `{first}`", facts=facts, hint=hint))


def _interface(model: Artifact) -> str:
    """The task and the graphs' inputs and outputs, in words."""
    described = model.descriptor
    if not described.components or described.format in ("dataset", "benchmark"):
        raise problem("a candidate is no model", format=described.format)
    graphs = [
        f"{name}({', '.join(t.name for t in graph.inputs)}) -> {', '.join(t.name for t in graph.outputs)}"
        for name, graph in sorted(described.components.items())
    ]
    return f"{described.task or 'no task'}: {'; '.join(graphs)}"


def _benchmark(ctx: Context) -> dict[str, Any]:
    given = ctx.input("benchmark")
    if given.descriptor.format != "benchmark":
        raise problem("`benchmark` is no target of kind `benchmark`", format=given.descriptor.format)
    table: dict[str, Any] = msgspec.json.decode((given.path / "benchmark.json").read_bytes())
    return table


def _figure(each: By, name: str, model: Artifact, table: dict[str, Any] | None) -> float:
    """A candidate's figure; a `ProblemError` when it has none, or one that is no number."""
    from modelbuild.lib import model_identity

    if each.metric == "size":
        return float(model_identity.size(model))
    if each.metric in (*OF_CELL, *OF_MODEL):
        assert table is not None
        row = _row(name, model, table)
        value = row[each.metric] if each.metric in OF_MODEL else _cell(each, row)[each.metric]
    else:
        value = model.descriptor.metrics.get(each.metric)
    if value is None or not math.isfinite(value):
        known = [*model.descriptor.metrics, "size", *(OF_CELL if table else ())]
        raise problem(
            f"`{name}` has no figure `{each.metric}`" if value is None else f"`{each.metric}` of `{name}` is no number",
            has=", ".join(known),
            hint=suggestion(each.metric, known) or "a target of kind `verified` measures; `speedup` needs a baseline",
        )
    return float(value)


def _row(name: str, model: Artifact, table: dict[str, Any]) -> dict[str, Any]:
    """The benchmark's figures of this model, known by its content."""
    from modelbuild.lib import model_identity

    wanted = model_identity.identity(model)
    for row in table["candidates"]:
        if row["model"] == wanted:
            found: dict[str, Any] = row
            return found
    raise problem(
        f"the benchmark did not measure `{name}`",
        measured=", ".join(row["name"] for row in table["candidates"]),
        hint="give the benchmark the same models in `from`",
    )


def _cell(each: By, row: dict[str, Any]) -> dict[str, Any]:
    """The one cell that `at` names."""
    wanted = {f: v for f, v in msgspec.structs.asdict(each.at).items() if v is not None}
    found: list[dict[str, Any]] = [c for c in row["cells"] if all(c[f] == v for f, v in wanted.items())]
    if len(found) == 1:
        return found[0]
    cells = "; ".join(f"batch {c['batch']}, sequence {c['sequence']}, threads {c['threads']}" for c in row["cells"])
    raise problem(
        f"`{each.metric}`: `at` names {len(found) or 'none'} of the benchmark's cells",
        cells=cells,
        hint="such as `at: {batch: 1, sequence: 128}`",
    )
