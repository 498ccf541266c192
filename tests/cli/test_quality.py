"""Measuring and choosing from one recipe: the best of a matrix goes on, and names count where they are written down."""

from __future__ import annotations

import json
from pathlib import Path

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
