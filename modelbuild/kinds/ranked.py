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

from typing import Annotated

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.errors import Problem, ProblemError
from modelbuild.kind import Context, Named, Ref, SpecError
from modelbuild.lib import figures
from modelbuild.lib.figures import By

VERSION = 1
TOOLS: dict[str, str] = {}
HARDWARE = ()
RESOURCES = ()

TABLE = "models_rank.json"


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
            if wrong := each.wrong(benchmark=self.benchmark is not None):
                title, hint = wrong
                raise SpecError(title, field="by", hint=hint)


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import passing, ranking

    models = dict(zip(ctx.names("from"), ctx.inputs["from"], strict=True))
    figures.require_alike(models)
    table = figures.benchmark(ctx.input("benchmark")) if spec.benchmark else None
    found = {n: {each.label: figures.of(each, n, model, table) for each in spec.by} for n, model in models.items()}
    places = ranking.order(found, [each.criterion for each in spec.by])
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
