"""How fast models are, and what memory they take, over a grid of sizes: candidates in turns with a baseline.

Each round runs every model once, so that what disturbs the machine disturbs all alike, and `speedup`, the median over
the rounds of the baseline's time by the model's, holds on a noisy machine, where milliseconds do not. Build it alone
(`-j 1`). Polygraphy's runners run the models: ONNX Runtime on a CPU or with CUDA, TensorRT for plans.

```yaml
targets:
  speed:
    kind: benchmark
    from: [int8, fp16]         # a target with a matrix means all its variants
    baseline: onnx
    batch: [1, 8]
    sequence: [16, 128]
    threads: [1]
```

The artifact is `benchmark.json`: for each model its latency (mean, sd, min, max, p50, p90, p95, p99, in milliseconds),
throughput (samples a second) and speedup in each cell, its size, and what loading it takes in a process of its own
(`load_s`, and the peak memory after one run). The figures hold for the machine that took them, which is written beside
them (`environment`). They are measured once for given models and options, wherever that was: `modelbuild clean` of the
target and another build measure again.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Context, Named, Ref, SpecError

VERSION = 1
TOOLS = {"polygraphy": "quality", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ("benchmark",)

TABLE = "benchmark.json"
Sizes = Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1)]


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref | list[Ref], Named(), Meta(description="The models to measure.")] = msgspec.field(name="from")
    baseline: Annotated[Ref | None, Named(), Meta(description="The model that `speedup` is over.")] = None
    batch: Annotated[Sizes, Meta(description="Samples at a time.")] = (1,)
    sequence: Annotated[Sizes, Meta(description="Tokens of a sample; of other models, every size that may vary.")] = (
        16,
        128,
    )
    threads: Annotated[Sizes, Meta(description="Threads of ONNX Runtime on a CPU.")] = (1,)
    provider: Annotated[Literal["cpu", "cuda"], Meta(description="Where ONNX models run.")] = "cpu"
    warmup: Annotated[int, Meta(ge=0, description="Rounds that are not counted.")] = 3
    rounds: Annotated[int, Meta(ge=5, description="Rounds that are.")] = 30

    def __post_init__(self) -> None:
        cells = len(self.batch) * len(self.sequence) * len(self.threads)
        if cells > 64:
            raise SpecError(f"`batch`, `sequence` and `threads` make {cells} cells", field="batch", hint="at most 64")


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import latency, model_identity

    names = [*ctx.names("from"), *(ctx.names("baseline") if spec.baseline else ())]
    models = [*ctx.inputs["from"], *ctx.inputs.get("baseline", ())]
    for name, model in zip(names, models, strict=True):
        _require_runnable(name, model)
    baseline = len(models) - 1 if spec.baseline else None
    grid = [latency.Cell(b, s, t) for t, s, b in itertools.product(spec.threads, spec.sequence, spec.batch)]
    cells = latency.cells(models, grid)
    loaded = [latency.load(model, cells[0], spec.provider) for model in models]
    rows: list[list[dict[str, object]]] = [[] for _ in models]
    for number, cell in enumerate(cells):

        def done(rounds: int, number: int = number) -> None:
            ctx.progress(number * spec.rounds + rounds, len(cells) * spec.rounds, "measure")

        times = latency.measure(
            models,
            cell,
            provider=spec.provider,
            warmup=spec.warmup,
            rounds=spec.rounds,
            baseline=baseline,
            done=done,
        )
        for i, each in enumerate(times):
            rows[i].append({**msgspec.to_builtins(cell), **msgspec.to_builtins(each)})
            ratio = "" if each.speedup is None or i == baseline else f", {each.speedup:.2f} times the baseline's speed"
            size = f"{cell.batch}x{cell.sequence}, {cell.threads} thread{'s' if cell.threads > 1 else ''}"
            ctx.log(f"{names[i]} at {size}: p50 {each.latency_p50:.2f} ms, p99 {each.latency_p99:.2f} ms{ratio}")
            ctx.metric(f"{names[i]} {size} latency_p50", each.latency_p50, "ms")
    candidates = [
        {
            "name": name,
            "model": model_identity.identity(model),
            "precision": model.descriptor.precision,
            "size_bytes": model_identity.size(model),
            **msgspec.to_builtins(load),
            "cells": cells_of,
        }
        for name, model, load, cells_of in zip(names, models, loaded, rows, strict=True)
    ]
    environment = latency.environment(spec.provider)
    ctx.log(f"on {environment['cpu']}, {environment['cores']} cores")
    table = {"environment": environment, "baseline": names[-1] if spec.baseline else None, "candidates": candidates}
    (ctx.out / TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    ctx.describe(Descriptor(format="benchmark", extras=(TABLE,), settings={"environment": environment}))


def _require_runnable(name: str, model: Artifact) -> None:
    described = model.descriptor
    if described.format not in ("onnx", "trt-plan"):
        raise problem(f"`{name}` is neither an ONNX model nor a plan", format=described.format)
    if len(described.components) != 1:
        raise problem(
            f"`{name}` has several graphs, which are not measured one by one",
            graphs=", ".join(described.components),
            hint="measure what serves it: `modelbuild serve`",
        )
