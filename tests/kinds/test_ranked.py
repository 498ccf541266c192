"""ranked: the order, the front, what passes through, and what cannot be ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelbuild import artifact
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import model_identity
from modelbuild.lib.ranking import Criterion, order
from tests import graphs
from tests.kinds.run import run_kind


def candidate(folder: Path, **metrics: float) -> Artifact:
    """A model with figures of its own."""
    made = graphs.product(folder)
    (folder / "model.onnx").write_bytes(made.model_path.read_bytes() + b"")
    artifact.write(folder, msgspec.structs.replace(made.descriptor, metrics=metrics))
    return artifact.read(folder)


def rank(
    folder: Path, models: dict[str, Artifact], by: list[dict[str, Any]], benchmark: Artifact | None = None
) -> Artifact:
    inputs: dict[str, Any] = {"from": list(models.values()), **({"benchmark": benchmark} if benchmark else {})}
    return run_kind("ranked", folder, {"by": by}, inputs=inputs, names={"from": tuple(models)})


def refusal(*arguments: Any, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        rank(*arguments, **values)
    (found,) = caught.value.problems
    return found


def table(built: Artifact) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((built.path / "models_rank.json").read_bytes())["models"]}


class TestOrder:
    FIGURES = {
        "a": {"cosine": 0.99, "ms": 5.0},
        "b": {"cosine": 0.99, "ms": 4.0},
        "c": {"cosine": 0.999, "ms": 9.0},
        "d": {"cosine": 0.5, "ms": 1.0},
        "e": {"cosine": 0.99, "ms": 4.0},
    }
    GOALS = [Criterion("cosine", "max", at_least=0.9), Criterion("ms", "min")]

    def test_goals_count_in_their_order_and_thresholds_before_them(self) -> None:
        places = order(self.FIGURES, self.GOALS)
        assert [(p.name, p.rank) for p in places] == [("c", 1), ("b", 2), ("e", 3), ("a", 4), ("d", None)]

    def test_the_front_holds_whom_no_other_beats(self) -> None:
        assert {p.name for p in order(self.FIGURES, self.GOALS) if p.pareto} == {"b", "c", "e"}

    def test_each_loser_is_told_why(self) -> None:
        why = {p.name: p.why for p in order(self.FIGURES, self.GOALS)}
        assert why["c"] == "the best"
        assert why["b"] == "cosine 0.99 against 0.999 of c"
        assert why["a"] == "cosine 0.99 against 0.999 of c; b is no worse in any goal"
        assert why["d"] == "cosine 0.5 is not at least 0.9"

    def test_equals_keep_the_order_they_were_named_in(self) -> None:
        places = order({"x": {"ms": 1.0}, "y": {"ms": 1.0}}, [Criterion("ms", "min")])
        assert [p.name for p in places] == ["x", "y"]
        assert places[1].why == "equal to x, which was named before it"


def test_the_best_passes_through(tmp_path: Path) -> None:
    models = {"slow": candidate(tmp_path / "a", ms=3.0), "fast": candidate(tmp_path / "b", ms=1.0)}
    built = rank(tmp_path / "r", models, [{"metric": "ms", "goal": "min"}])
    assert built.descriptor.metrics == {"ms": 1.0}
    assert built.model_path.read_bytes() == models["fast"].model_path.read_bytes()
    assert table(built)["slow"]["rank"] == 2
    assert table(built)["fast"]["pareto"]


def test_size_is_known_of_every_model(tmp_path: Path) -> None:
    built = rank(tmp_path / "r", {"one": candidate(tmp_path / "a")}, [{"metric": "size", "goal": "min"}])
    assert table(built)["one"]["figures"] == {"size": built.model_path.stat().st_size}


def benchmark(folder: Path, rows: dict[str, tuple[Artifact, dict[tuple[int, int], float]]]) -> Artifact:
    """A benchmark's artifact with given latencies by (batch, sequence)."""
    folder.mkdir()
    candidates = [
        {
            "name": name,
            "model": model_identity.identity(model),
            "load_s": 0.5,
            "peak_rss_bytes": 10,
            "cells": [
                {"batch": b, "sequence": s, "threads": 1, "latency_p50": ms, "speedup": None}
                for (b, s), ms in cells.items()
            ],
        }
        for name, (model, cells) in rows.items()
    ]
    text = json.dumps({"environment": {"cores": 2}, "candidates": candidates})
    (folder / "benchmark.json").write_text(text)
    artifact.write(folder, Descriptor(format="benchmark", extras=("benchmark.json",)))
    return artifact.read(folder)


class TestBenchmark:
    def test_figures_are_those_of_the_cell(self, tmp_path: Path) -> None:
        models = {"a": graphs.product(tmp_path / "a"), "b": graphs.product(tmp_path / "b", batch=2)}
        cells = {"a": {(1, 16): 1.0, (1, 128): 9.0}, "b": {(1, 16): 2.0, (1, 128): 8.0}}
        given = benchmark(tmp_path / "t", {n: (models[n], c) for n, c in cells.items()})
        by = [{"metric": "latency_p50", "goal": "min", "at": {"sequence": 128}}]
        built = rank(tmp_path / "r", models, by, benchmark=given)
        assert table(built)["b"]["rank"] == 1
        assert table(built)["a"]["figures"] == {"latency_p50 at sequence 128": 9.0}
        found = refusal(tmp_path / "r2", models, [{"metric": "latency_p50", "goal": "min"}], benchmark=given)
        assert found.title == "`latency_p50`: `at` names 2 of the benchmark's cells"

    def test_a_model_that_was_not_measured(self, tmp_path: Path) -> None:
        measured, other = graphs.product(tmp_path / "a"), graphs.product(tmp_path / "b", batch=2)
        given = benchmark(tmp_path / "t", {"a": (measured, {(1, 16): 1.0})})
        found = refusal(tmp_path / "r", {"b": other}, [{"metric": "latency_p50", "goal": "min"}], benchmark=given)
        assert found.title == "the benchmark did not measure `b`"

    def test_something_else_than_a_benchmark(self, tmp_path: Path) -> None:
        model = graphs.product(tmp_path / "a")
        found = refusal(tmp_path / "r", {"a": model}, [{"metric": "load_s", "goal": "min"}], benchmark=model)
        assert found.title == "`benchmark` is no target of kind `benchmark`"


class TestRefusals:
    def test_nobody_meets_the_thresholds(self, tmp_path: Path) -> None:
        models = {"a": candidate(tmp_path / "a", cosine=0.5), "b": candidate(tmp_path / "b", cosine=0.6)}
        found = refusal(tmp_path / "r", models, [{"metric": "cosine", "at_least": 0.9}])
        assert found.title == "no candidate meets the thresholds"
        assert dict(found.facts)["a"] == "cosine 0.5 is not at least 0.9"

    def test_a_figure_that_is_missing(self, tmp_path: Path) -> None:
        models = {"a": candidate(tmp_path / "a", cosine=0.5), "b": candidate(tmp_path / "b")}
        found = refusal(tmp_path / "r", models, [{"metric": "cosine", "goal": "max"}])
        assert found.title == "`b` has no figure `cosine`"

    def test_a_figure_that_is_misspelt(self, tmp_path: Path) -> None:
        found = refusal(
            tmp_path / "r", {"a": candidate(tmp_path / "a", cosine=1)}, [{"metric": "cosin", "goal": "max"}]
        )
        assert found.hint == "did you mean `cosine`?"

    def test_models_that_could_not_stand_in_for_each_other(self, tmp_path: Path) -> None:
        models = {"a": graphs.conv(tmp_path / "a"), "b": graphs.conv(tmp_path / "b")}
        artifact.write(models["b"].path, msgspec.structs.replace(models["b"].descriptor, task="fill-mask"))
        models["b"] = artifact.read(models["b"].path)
        found = refusal(tmp_path / "r", models, [{"metric": "size", "goal": "min"}])
        assert found.title == "`b` could not stand in for `a`"

    @pytest.mark.parametrize(
        "by",
        [
            [],
            [{"metric": "cosine"}],
            [{"metric": "latency_p50", "goal": "min"}],
            [{"metric": "cosine", "goal": "max", "at": {"batch": 1}}],
            [{"metric": "cosine", "goal": "upwards"}],
        ],
    )
    def test_criteria_that_make_no_sense(self, tmp_path: Path, by: list[dict[str, Any]]) -> None:
        with pytest.raises(msgspec.ValidationError):
            rank(tmp_path / "r", {"a": candidate(tmp_path / "a", cosine=1)}, by)
