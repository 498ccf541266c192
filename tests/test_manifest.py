"""Manifests: what the key is made of, and what their difference says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbuild.manifest import Change, Manifest, SourceFact, canonical, diff, facts, history, key, lineage

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def manifest(**changed: Any) -> Manifest:
    given_: dict[str, Any] = {
        "kind": "int8",
        "version": 3,
        "options": {"calibrate": "minmax", "per_channel": True},
        "inputs": {"from": ("a" * 32,), "calibration": ("b" * 32, "c" * 32)},
        "lineage": {},
        "sources": {"path": SourceFact("d" * 32, ".csv")},
        "tools": {"onnxruntime": "1.24.0", "zlib": None},
        "hardware": {"sm": "9.0"},
    }
    return Manifest(**{**given_, **changed})


CHANGES: list[tuple[dict[str, Any], list[Change]]] = [
    ({"kind": "fused"}, [Change("kind", "int8", "fused")]),
    ({"version": 4}, [Change("version", "3", "4")]),
    ({"options": {"calibrate": "entropy", "per_channel": True}}, [Change("option.calibrate", '"minmax"', '"entropy"')]),
    ({"options": {"calibrate": "minmax"}}, [Change("option.per_channel", "true", None)]),
    (
        {"options": {"calibrate": "minmax", "per_channel": True, "new": 1}},
        [Change("option.new", None, "1")],
    ),
    ({"options": {"calibrate": "minmax", "per_channel": 1}}, [Change("option.per_channel", "true", "1")]),
    (
        {"inputs": {"from": ("e" * 32,), "calibration": ("b" * 32, "c" * 32)}},
        [Change("input.from", "a" * 32, "e" * 32)],
    ),
    (
        {"inputs": {"from": ("a" * 32,), "calibration": ("c" * 32, "b" * 32)}},
        [Change("input.calibration", f"{'b' * 32} {'c' * 32}", f"{'c' * 32} {'b' * 32}")],
    ),
    ({"lineage": {"from": "f"}}, [Change("lineage.from", None, "f")]),
    (
        {"sources": {"path": SourceFact("e" * 32, ".csv")}},
        [Change("source.path", f"{'d' * 32}.csv", f"{'e' * 32}.csv")],
    ),
    (
        {"sources": {"path": SourceFact("d" * 32, ".txt")}},
        [Change("source.path", f"{'d' * 32}.csv", f"{'d' * 32}.txt")],
    ),
    ({"tools": {"onnxruntime": "1.25.0", "zlib": None}}, [Change("tool.onnxruntime", "1.24.0", "1.25.0")]),
    ({"tools": {"onnxruntime": "1.24.0", "zlib": "1.3"}}, [Change("tool.zlib", "none", "1.3")]),
    ({"hardware": {"sm": "8.9"}}, [Change("hardware.sm", "9.0", "8.9")]),
    ({"hardware": {}}, [Change("hardware.sm", "9.0", None)]),
]


@pytest.mark.parametrize(("changed", "expected"), CHANGES)
def test_each_fact_changes_the_key_and_is_told_by_the_difference(
    changed: dict[str, Any], expected: list[Change]
) -> None:
    assert key(manifest(**changed)) != key(manifest())
    assert list(diff(manifest(), manifest(**changed))) == expected


def test_the_same_manifest_has_the_same_key_and_no_difference() -> None:
    assert key(manifest()) == key(manifest())
    assert diff(manifest(), manifest()) == ()


def test_the_order_in_which_options_were_written_does_not_matter() -> None:
    turned = {"per_channel": True, "calibrate": "minmax"}

    assert key(manifest(options=turned)) == key(manifest())


@given(st.dictionaries(st.text(), values, max_size=4), st.dictionaries(st.text(), values, max_size=4))
def test_keys_are_equal_exactly_where_the_facts_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = manifest(options=one), manifest(options=other)

    assert (key(first) == key(second)) == (list(facts(first)) == list(facts(second)))
    assert (key(first) == key(second)) == (diff(first, second) == ())


@given(st.dictionaries(st.text(), values, max_size=4))
def test_a_manifest_survives_its_record(options: dict[str, Any]) -> None:
    made = manifest(options=options)

    again = msgspec.json.decode(msgspec.json.encode(made), type=Manifest)

    assert key(again) == key(made)


def test_facts_of_one_group_are_not_taken_for_another() -> None:
    option = manifest(options={"x": 1}, tools={})
    tool = manifest(options={}, tools={"x": "1"})

    assert key(option) != key(tool)


def test_the_key_is_32_hex_digits() -> None:
    assert len(key(manifest())) == 32
    assert int(key(manifest()), 16) >= 0


def test_this_key_never_changes() -> None:
    """A new way of making keys would make every artifact everywhere stale: change this knowingly."""
    assert key(manifest()) == "3283c6b8e5eb53034d0498c7d0693b7d"


def test_canonical_json_has_sorted_keys_at_every_depth() -> None:
    assert canonical({"b": {"d": 1, "c": 2}, "a": []}) == b'{"a":[],"b":{"c":2,"d":1}}'


def test_lineage_changes_when_any_stage_was_made_differently() -> None:
    stages = [(manifest(), "1" * 32), (manifest(version=4), "2" * 32)]

    assert lineage(stages) == lineage(list(stages))
    assert lineage(stages) != lineage([(manifest(version=5), "1" * 32), stages[1]])
    assert lineage(stages) != lineage([(manifest(), "3" * 32), stages[1]])
    assert lineage(stages) != lineage(stages[::-1])


def test_history_is_plain_data_with_outputs() -> None:
    (stage,) = history([(manifest(), "1" * 32)])

    assert stage["kind"] == "int8"
    assert stage["output"] == "1" * 32
    assert key(msgspec.convert(stage, Manifest)) == key(manifest())
