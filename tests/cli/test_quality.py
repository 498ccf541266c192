"""Measuring and choosing from one recipe: the best of a matrix goes on, and names count where they are written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests import models
from tests.sandbox import Sandbox

RECIPE = """
    onnx:  {kind: onnx, path: model.onnx}
    small: {kind: int4, from: onnx, block_size: 16, matrix: {bits: [4, 8]}}
    speed: {kind: benchmark, from: small, baseline: onnx, sequence: [8], rounds: 5}
    best:
      kind: ranked
      from: small
      benchmark: speed
      by: [{metric: cosine_worst, goal: max}, {metric: speedup, goal: max}]
    end:   {kind: zip, from: best}
"""


def test_the_best_of_a_matrix_goes_on(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.recipe(RECIPE)
    models.write_onnx(sandbox.root / "recipes" / "model.onnx", width=64)
    ran = sandbox.build("end")
    assert ran.code == 0, ran
    assert [t for t in ran.built if "small" not in t] == ["onnx", "speed", "best", "end"]

    ranks = json.loads((sandbox.path("best") / "models_rank.json").read_bytes())["models"]
    assert [(r["name"], r["rank"]) for r in ranks] == [("small[bits=8]", 1), ("small[bits=4]", 2)]
    best = (sandbox.path("best") / "model.onnx").read_bytes()
    assert best == (sandbox.path("small[bits=8]") / "model.onnx").read_bytes()
    assert sandbox.build("end").built == []

    sandbox.edit("small: {kind", "tiny: {kind")
    sandbox.edit("from: small, baseline", "from: tiny, baseline")
    sandbox.edit("from: small\n", "from: tiny\n")
    why = sandbox.run("why", "speed").out
    assert "tiny[bits=4]" in why
    assert "small[bits=4]" in why
    assert sandbox.build("best").built == ["speed", "best"]


METRIC = "def width(outputs, labels):\n    return {} * len(outputs['last_hidden_state'])\n"


def test_an_edited_metric_is_measured_again(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    recipe = """
        onnx: {kind: onnx, path: model.onnx}
        rows: {kind: dataset, path: rows.npz}
        held:
          kind: verified
          from: onnx
          data: rows
          metrics: {width: "measures:width"}
          code: measures.py
          require: {width: {min: 1}}
    """
    sandbox.recipe(recipe)
    models.write_onnx(sandbox.root / "recipes" / "model.onnx")
    ids = np.zeros((4, 8), np.int64)
    np.savez(sandbox.root / "recipes" / "rows.npz", input_ids=ids, attention_mask=ids + 1)
    sandbox.data("measures.py", METRIC.format(1))
    sandbox.built("held")
    assert sandbox.build("held").built == []

    sandbox.data("measures.py", METRIC.format(2))
    assert "source `measures.py` (code) has other content" in sandbox.run("why", "held").out
    assert sandbox.built("held").built == ["held"]
    (told,) = sandbox.run("show", "held", "--json").json
    assert (told["before"]["figures"]["width"], told["measured"]["figures"]["width"]) == (4, 8)

    sandbox.data("measures.py", METRIC.format(0))
    failed = sandbox.build("held")
    assert failed.code == 1
    assert [p["title"] for p in failed.problems] == ["1 of 1 requirements did not hold"]


def test_without_a_dataset_the_recipe_is_wrong(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.recipe(
        "onnx: {kind: onnx, path: model.onnx}\nheld: {kind: verified, from: onnx, require: {cosine: {min: 1}}}"
    )
    (found,) = sandbox.build("held").problems
    assert "data" in found["title"]
    assert found["where"]["line"] == 3
