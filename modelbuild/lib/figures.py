"""Figures by which models are chosen: named in a recipe, read from descriptors, sizes and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError, problem, suggestion
from modelbuild.lib.ranking import Criterion

OF_CELL = (
    *("latency_mean", "latency_sd", "latency_min", "latency_max", "latency_p50", "latency_p90", "latency_p95"),
    *("latency_p99", "throughput", "speedup"),
)
OF_MODEL = ("load_s", "peak_rss_bytes")
OF_BENCHMARK = (*OF_CELL, *OF_MODEL)


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

    @property
    def label(self) -> str:
        """`latency_p50 at batch 1, sequence 128`."""
        cell = [f"{f} {v}" for f, v in msgspec.structs.asdict(self.at).items() if v is not None]
        return f"{self.metric} at {', '.join(cell)}" if cell else self.metric

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.label, self.goal, self.at_least, self.at_most)

    def wrong(self, *, benchmark: bool) -> tuple[str, str | None] | None:
        """What does not fit together in it, with a hint; `benchmark` tells whether there is one."""
        if self.goal is None and self.at_least is None and self.at_most is None:
            return f"`{self.metric}` has neither a goal nor a threshold", "say `goal: min`, `goal: max`, or a threshold"
        if self.metric in OF_BENCHMARK and not benchmark:
            return f"`{self.metric}` needs a `benchmark`", None
        if self.at != At() and self.metric not in OF_CELL:
            return f"`{self.metric}` is no figure of a benchmark's cell", "leave out `at`"
        return None


def benchmark(given: Artifact) -> dict[str, Any]:
    """The table of a target of kind `benchmark`."""
    if given.descriptor.format != "benchmark":
        raise problem("`benchmark` is no target of kind `benchmark`", format=given.descriptor.format)
    table: dict[str, Any] = msgspec.json.decode((given.path / "benchmark.json").read_bytes())
    return table


def of(each: By, name: str, model: Artifact, table: Mapping[str, Any] | None) -> float:
    """A candidate's figure; a `ProblemError` when it has none, or one that is no number.

    `name` is what the candidate is called, and `table` the benchmark's, which `each` may not ask for without.
    """
    from modelbuild.lib import model_identity

    if each.metric == "size":
        return float(model_identity.size(model))
    if each.metric in OF_BENCHMARK:
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


def _row(name: str, model: Artifact, table: Mapping[str, Any]) -> dict[str, Any]:
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


def _cell(each: By, row: Mapping[str, Any]) -> dict[str, Any]:
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


def require_alike(models: Mapping[str, Artifact]) -> None:
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
