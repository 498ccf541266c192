"""benchmark: the table it makes, the grid, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import ProblemError
from modelbuild.lib import model_identity
from tests import graphs
from tests.kinds.run import Heard, run_kind


def measure(
    folder: Path,
    models: dict[str, Artifact],
    baseline: Artifact | None = None,
    heard: Heard | None = None,
    **values: Any,
) -> dict[str, Any]:
    inputs: dict[str, Any] = {"from": list(models.values())}
    names = {"from": tuple(models)}
    if baseline is not None:
        inputs["baseline"], names["baseline"] = baseline, ("base",)
    options = {"rounds": 5, "warmup": 1, **values}
    built = run_kind("benchmark", folder, options, inputs=inputs, names=names, heard=heard)
    assert built.descriptor.format == "benchmark"
    table: dict[str, Any] = json.loads((built.path / "benchmark.json").read_bytes())
    return table


def test_candidates_are_measured_beside_the_baseline(tmp_path: Path) -> None:
    small, large = graphs.product(tmp_path / "small"), graphs.conv(tmp_path / "large")
    heard = Heard()
    table = measure(tmp_path / "b", {"small": small, "large": large}, baseline=large, heard=heard, batch=[1, 4])
    assert [c["name"] for c in table["candidates"]] == ["small", "large", "base"]
    assert table["baseline"] == "base"
    assert table["environment"]["cores"] >= 1
    for row in table["candidates"]:
        assert row["size_bytes"] > 0
        assert row["load_s"] > 0
        assert row["peak_rss_bytes"] > 10e6
        for cell in row["cells"]:
            assert 0 < cell["latency_min"] <= cell["latency_p50"] <= cell["latency_p99"] <= cell["latency_max"]
            assert cell["throughput"] == pytest.approx(1000 * cell["batch"] / cell["latency_mean"])
            assert cell["speedup"] > 0
    base = table["candidates"][2]
    assert all(cell["speedup"] == 1 for cell in base["cells"])
    assert table["candidates"][1]["model"] == base["model"] == model_identity.identity(large)
    assert table["candidates"][0]["model"] != base["model"]
    assert any("times the baseline's speed" in line for line in heard.logs)


def test_without_a_baseline_there_is_no_speedup(tmp_path: Path) -> None:
    table = measure(tmp_path / "b", {"one": graphs.product(tmp_path / "m")})
    assert table["candidates"][0]["cells"][0]["speedup"] is None


def test_sizes_that_change_nothing_are_measured_once(tmp_path: Path) -> None:
    fixed = graphs.product(tmp_path / "m", batch=2)
    table = measure(tmp_path / "b", {"fixed": fixed}, batch=[1, 8], sequence=[16, 32], threads=[1, 2])
    assert [c["threads"] for c in table["candidates"][0]["cells"]] == [1, 2]


def test_more_batches_are_more_work(tmp_path: Path) -> None:
    table = measure(tmp_path / "b", {"m": graphs.conv(tmp_path / "m")}, batch=[1, 64], sequence=[32])
    one, many = table["candidates"][0]["cells"]
    assert many["latency_min"] > 3 * one["latency_min"]


def test_a_dataset_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"")
    import numpy as np

    np.savez(tmp_path / "t.npz", x=np.zeros((2, 3)))
    data = run_kind("dataset", tmp_path / "d", {}, sources={"path": tmp_path / "t.npz"})
    with pytest.raises(ProblemError, match="`data` is neither an ONNX model nor a plan"):
        measure(tmp_path / "b", {"data": data})


def test_a_grid_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(msgspec.ValidationError, match="make 72 cells"):
        measure(tmp_path / "b", {"m": graphs.conv(tmp_path / "m")}, batch=[*range(1, 10)], sequence=[*range(1, 9)])


def test_the_identity_is_the_models_and_not_what_travels_with_it(tmp_path: Path) -> None:
    model, other = graphs.product(tmp_path / "m"), graphs.conv(tmp_path / "c")
    before = model_identity.identity(model)
    (model.path / "notes.txt").write_text("beside")
    assert model_identity.identity(model) == before
    assert model_identity.identity(other) != before
    assert model_identity.size(model) == model.model_path.stat().st_size
