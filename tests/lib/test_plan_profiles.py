"""Profiles: from a recipe's shorthand to the shapes of every input, and what does not fit the model."""

from __future__ import annotations

from typing import Any

import pytest

from modelbuild.artifact import Tensor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib.plan_profiles import Shapes, expand, wrong_order

TEXTS = (Tensor("input_ids", "int64", ("batch", "sequence")), Tensor("mask", "int64", ("batch", "sequence")))
IMAGE = (Tensor("pixels", "float32", ("batch", 3, 224, 224)),)


def refusal(profiles: list[dict[str, Any]], inputs: tuple[Tensor, ...] = TEXTS) -> Problem:
    with pytest.raises(ProblemError) as caught:
        expand(profiles, inputs)
    (found,) = caught.value.problems
    return found


def test_dimensions_by_name_give_every_input_its_shapes() -> None:
    (profile,) = expand([{"batch": (1, 8, 32), "sequence": (8, 128, 512)}], TEXTS)
    assert profile == {name: Shapes((1, 8), (8, 128), (32, 512)) for name in ("input_ids", "mask")}


def test_one_number_stands_for_all_three() -> None:
    (profile,) = expand([{"batch": 4}], IMAGE)
    assert profile["pixels"].min == profile["pixels"].max == (4, 3, 224, 224)


def test_shapes_of_one_input_hold_for_the_dimensions_it_shares() -> None:
    shapes = Shapes((1, 8), (8, 128), (32, 512))
    (profile,) = expand([{"input_ids": shapes}], TEXTS)
    assert profile["mask"] == shapes


def test_a_model_of_fixed_shapes_needs_no_profile() -> None:
    assert expand([], [Tensor("x", "float32", (2, 3))]) == ({"x": Shapes((2, 3), (2, 3), (2, 3))},)


def test_a_scalar_input_has_the_shape_of_one() -> None:
    (profile,) = expand([], [Tensor("step", "int64", ())])
    assert profile["step"] == Shapes((), (), ())


def test_no_profile_for_dynamic_dimensions_is_answered_with_one_to_paste() -> None:
    found = refusal([])
    assert found.title == "the model has dynamic dimensions, and no profile says how large they get"
    assert "profiles: [{batch: [1, 8, 32], sequence: [8, 128, 512]}]" in (found.hint or "")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    found = refusal([{"batch": 1, "sequence": 8, "inptu_ids": Shapes((1,), (1,), (1,))}])
    assert found.title == "profile 1: the model has no input or dynamic dimension `inptu_ids`"
    assert found.hint == "did you mean `input_ids`?"


def test_a_dimension_that_is_left_out_is_named_with_its_inputs() -> None:
    found = refusal([{"batch": 1, "sequence": 8}, {"batch": (1, 8, 32)}])
    assert found.title == "profile 2 does not say how large `sequence` gets"
    assert dict(found.facts)["inputs"] == "input_ids, mask"


def test_a_fixed_dimension_keeps_its_size() -> None:
    found = refusal([{"pixels": Shapes((1, 3, 64, 224), (1, 3, 64, 224), (1, 3, 64, 224))}], IMAGE)
    assert found.title == "profile 1: dimension 2 of `pixels` is fixed at 224"


def test_a_shape_has_as_many_dimensions_as_its_input() -> None:
    found = refusal([{"pixels": Shapes((1, 3), (1, 3), (1, 3))}], IMAGE)
    assert found.title == "profile 1: `pixels` has 4 dimensions, not 2"


def test_a_dimension_has_one_size_in_all_inputs() -> None:
    found = refusal([{"batch": (1, 8, 16), "input_ids": Shapes((1, 8), (8, 128), (32, 512))}])
    assert found.title == "profile 1 gives `batch` two ranges"


def test_an_input_takes_shapes_and_a_dimension_takes_a_range() -> None:
    assert "is an input, and takes whole shapes" in refusal([{"input_ids": (1, 2, 3)}]).title
    assert "is a dimension, and takes [min, opt, max]" in refusal([{"batch": Shapes((1,), (1,), (1,))}]).title


@pytest.mark.parametrize(
    ("profile", "wrong"),
    [
        ({"batch": (8, 1, 32)}, "`batch`: 8, 1, 32 are not in the order min <= opt <= max"),
        ({"batch": (1, 64, 32)}, "`batch`: 1, 64, 32 are not in the order min <= opt <= max"),
        ({"batch": -1}, "`batch`: a size cannot be -1"),
        ({"x": Shapes((1, 9), (1, 8), (1, 8))}, "`x`: 9, 8, 8 are not in the order min <= opt <= max"),
        ({"x": Shapes((1,), (1, 8), (1, 8))}, "`x`: `min`, `opt` and `max` have different numbers of dimensions"),
    ],
)
def test_ranges_out_of_order_are_wrong_whatever_the_model(profile: dict[str, Any], wrong: str) -> None:
    assert wrong_order(profile) == wrong


def test_a_profile_in_order_is_not_wrong() -> None:
    assert wrong_order({"batch": (1, 8, 32), "past": (0, 0, 8), "x": Shapes((1,), (2,), (2,))}) is None
