"""int8: what each product costs, and the dearest left in floats until the result is close enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelbuild.artifact import Artifact
from modelbuild.lib import onnx_files, sensitivity
from modelbuild.lib.sensitivity import Cost
from tests import graphs
from tests.kinds.run import Heard
from tests.kinds.test_int8 import normal, quantize, refusal

DEAR, CHEAP = "layer[0]/dear", "layer[1]/cheap"


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """Two products side by side: one of a value far out of all others, whose range costs the others their digits."""
    nodes = [
        helper.make_node("Mul", ["x", "far"], ["wide"], name="widen"),
        helper.make_node("MatMul", ["wide", "w"], ["a"], name=DEAR),
        helper.make_node("MatMul", ["x", "v"], ["b"], name=CHEAP),
        helper.make_node("Add", ["a", "b"], ["y"], name="add"),
    ]
    far = np.ones(32, "float32")
    far[3] = 200.0
    weight = graphs.weights(32, 16)
    weight[3] = 0  # what is far out does not even count
    constants = {"far": far, "w": weight, "v": graphs.weights(32, 16)}
    shapes = [("x", TensorProto.FLOAT, ["batch", 32])], [("y", TensorProto.FLOAT, ["batch", 16])]
    return graphs.save(tmp_path / "model", nodes, *shapes, constants)


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return normal(tmp_path / "data", 64, 32)


def rows(built: Artifact) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((built.path / "sensitivity.json").read_bytes())["model"]
    return found


def in_floats(built: Artifact) -> set[str]:
    """The products whose weight is not dequantized."""
    model = onnx_files.load(built.model_path)
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    return {n.name for n in model.graph.node if n.op_type == "MatMul" and made.get(n.input[1]) != "DequantizeLinear"}


def test_the_dearest_product_is_told_first(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    heard = Heard()
    built = quantize(tmp_path / "q", model, data, heard, sensitivity=True, smooth=None)

    first, second = rows(built)
    assert (first["node"], second["node"]) == (DEAR, CHEAP)
    assert first["cosine"] > 10 * abs(second["cosine"])
    assert not first["in_floats"]
    assert in_floats(built) == set(), "nothing is spared unless it is asked for"
    assert any(line.startswith(f"`{DEAR}` costs 0.0") for line in heard.logs)
    assert any(line.startswith(f'to spare them: `exclude: ["{DEAR}"') for line in heard.logs)
    assert built.descriptor.extras == ("sensitivity.json",)
    plain = quantize(tmp_path / "plain", model, data, smooth=None)
    assert plain.model_path.read_bytes() == built.model_path.read_bytes()


def test_it_is_spared_until_the_cosine_holds(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    plain = quantize(tmp_path / "plain", model, data, smooth=None)
    assert plain.descriptor.metrics["cosine"] < 0.999
    heard = Heard()

    built = quantize(tmp_path / "q", model, data, heard, least_cosine=0.9995, smooth=None)

    assert built.descriptor.metrics["cosine"] >= 0.9995
    assert in_floats(built) == {DEAR}
    assert [row["in_floats"] for row in rows(built)] == [True, False]
    assert any(line.endswith("stays in floats") for line in heard.logs)
    spelled = quantize(tmp_path / "spelled", model, data, smooth=None, exclude=["layer[[]0]/dear"])
    assert spelled.model_path.read_bytes() == built.model_path.read_bytes(), "it is what `exclude` would give"


def test_what_holds_already_is_left_as_it_is(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    built = quantize(tmp_path / "q", model, data, least_cosine=0.5, smooth=None)
    assert in_floats(built) == set()


def test_what_cannot_be_held_fails(tmp_path: Path, model: Artifact, data: Artifact) -> None:
    found = refusal(tmp_path / "q", model, data, least_cosine=0.9999999, smooth=None)
    assert found.title == "`least_cosine: 0.9999999` cannot be held"
    assert "with all but one of 2 products in floats" in dict(found.facts)["reached"]


def test_without_data_too(tmp_path: Path, model: Artifact) -> None:
    built = quantize(tmp_path / "q", model, sensitivity=True)
    assert {row["node"] for row in rows(built)} == {DEAR, CHEAP}
    assert rows(built)[0]["cosine"] >= rows(built)[1]["cosine"]


def test_how_many_to_spare_follows_from_what_each_costs() -> None:
    ordered = [Cost("a", 0.003), Cost("b", 0.002), Cost("c", -0.001)]
    assert [sensitivity.to_spare(0.99, ordered, least) for least in (0.98, 0.992, 0.9945, 0.999)] == [0, 1, 2, 3]
