"""YAML text to nodes: what words mean, what is refused, and where messages point."""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import Problem
from modelbuild.language.document import DEEPEST, LARGEST_FILE, load, parse
from modelbuild.language.node import Node
from modelbuild.language.scalar import canonical, resolve


def plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: plain(child) for key, (_, child) in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def value(text: str) -> Any:
    node, problems = parse(text.encode(), Path("/p/r.yaml"), "r.yaml")
    assert node is not None
    assert problems == []
    return plain(node)


def told(content: str | bytes) -> list[Problem]:
    data = content.encode() if isinstance(content, str) else content
    return parse(data, Path("/p/r.yaml"), "r.yaml")[1]


def only(content: str | bytes) -> tuple[str, str]:
    (problem,) = told(content)
    return problem.title, str(problem.where)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("off", "off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("1", 1), ("017", 17), ("0o17", 15), ("0x1F", 31), ("-3", -3), ("+3", 3), ("1_000", "1_000"),
        ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-1.5E+3", -1500.0), (".inf", math.inf), ("-.INF", -math.inf),
        ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("0b1", "0b1"), ("-", "-"),
        (".", "."), ("e5", "e5"), ("0o8", "0o8"), ("nULL", "nULL"),
    ],
)  # fmt: skip
def test_plain_words_mean_what_yaml_1_2_says(text: str, meaning: Any) -> None:
    assert resolve(text) == meaning
    assert type(resolve(text)) is type(meaning)


def test_nan_is_a_number_and_quotes_make_text() -> None:
    assert math.isnan(resolve(".nan"))  # type: ignore[arg-type]
    assert value("a: '1'\nb: \"true\"\nc: !!str 1\nd: !!float 1\n") == {"a": "1", "b": "true", "c": "1", "d": 1.0}


@pytest.mark.parametrize("meaning", [True, None, 1, -2, 0.5, 1e-9, 1e22, math.inf, 2**64 - 1])
def test_canonical_text_means_the_same(meaning: Any) -> None:
    assert resolve(canonical(meaning)) == meaning


@pytest.mark.parametrize("text", ["1" * 5000, str(2**64), "1e999", "-" + "9" * 30])
def test_a_number_too_large_to_hold_is_a_problem(text: str) -> None:
    assert only(f"a: {text}\n") == ("the number is too large", "r.yaml:1:4")


def test_keys_are_text_whatever_they_look_like() -> None:
    assert value("1: a\ntrue: b\nno: c\n") == {"1": "a", "true": "b", "no": "c"}


def test_nodes_know_where_they_were_written() -> None:
    node, _ = parse(
        b"\xef\xbb\xbf# comment\r\na:\r\n  - {b: caf\xc3\xa9, c: [1, two]}\r\n", Path("/p/r.yaml"), "r.yaml"
    )
    assert node is not None
    assert node.entries is not None
    items = node.entries["a"][1].value
    assert isinstance(items, list)
    inner = items[0].entries
    assert inner is not None
    key, two = inner["c"][0], inner["c"][1].value[1]  # type: ignore[index]
    assert (str(key.where), key.where.width) == ("r.yaml:3:15", 1)
    assert isinstance(two, Node)
    assert (two.where.column, two.where.width, two.where.text) == (22, 3, "  - {b: café, c: [1, two]}")


def test_duplicate_keys_are_all_told_and_point_to_both() -> None:
    problems = told("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert [(p.title, str(p.where), p.facts) for p in problems] == [
        ("duplicate key `c`", "r.yaml:2:11", (("first", "r.yaml:2:5"),)),
        ("duplicate key `a`", "r.yaml:3:1", (("first", "r.yaml:1:1"),)),
    ]


@pytest.mark.parametrize(
    ("text", "title", "where"),
    [
        ("<<: {a: 1}", "merge keys (`<<`) are not part of YAML 1.2", "1:1"),
        ("a: !!python/object:os.system x", "the tag `!!python/object:os.system` is not allowed here", "1:4"),
        ("a: !!timestamp 2024-01-01", "the tag `!!timestamp` is not allowed here", "1:4"),
        ("a: !mine {}", "the tag `!mine` is not allowed here", "1:4"),
        ("a: !!int x", "the value is no `!!int`", "1:4"),
        ("[a, b]: c", "a key must be a word", "1:1"),
        ("a: 1\n---\nb: 2", "a second document starts here", "2:1"),
        ("", "the file is empty", "1:1"),
        ("# only a comment\n", "the file is empty", "1:1"),
        ("a: &x {b: *x}", "`*x` contains itself", "1:11"),
        ("a: *x", "`*x` has no anchor `&x` before it", "1:4"),
        ("a: 1\nb: \x07", "the character U+0007 is not allowed in YAML", "2:4"),
        ("a: b: c", "the file is not valid YAML", "1:5"),
        ("a: {b", "the file is not valid YAML", "1:6"),
    ],
)
def test_what_is_not_plain_data_is_refused_where_it_stands(text: str, title: str, where: str) -> None:
    assert only(text) == (title, f"r.yaml:{where}")


def test_quoted_merge_key_and_aliases_are_fine() -> None:
    assert value("a: &x [1, 2]\nb: *x\n'<<': c\n") == {"a": [1, 2], "b": [1, 2], "<<": "c"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\tb: 1", "indent with spaces: YAML does not take tabs"),
        ("{from: int8[a=b]}", 'put quotes around a reference with brackets: "int8[calibrate=minmax]"'),
        ("a: b: c", "put quotes around a value that contains `: `, and check the indentation"),
        ("a: @x", "put quotes around a value that starts with a special character"),
    ],
)
def test_common_slips_get_a_hint(text: str, hint: str) -> None:
    (problem,) = told(text)
    assert problem.hint == hint


def test_not_utf8_names_the_byte() -> None:
    (problem,) = told(b"a: 1\nb: caf\xe9 x\n")
    assert (problem.title, str(problem.where)) == ("the file is not UTF-8", "r.yaml:2:7")
    assert ("offset", "byte 11") in problem.facts


def test_a_two_megabyte_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"# comment\n" * (2 * LARGEST_FILE // 10))
    node, (problem,) = load(path, "r.yaml")
    assert node is None
    assert (problem.title, problem.facts) == ("the recipe is too large", (("limit", "1 MiB"),))


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, title in (("gone", "`x` does not exist"), (".", "`x` is not a file"), ("pipe", "`x` is not a file")):
        node, (problem,) = load(tmp_path / name, "x")
        assert node is None
        assert problem.title == title


BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "deep flow": "[" * 200_000,
    "deep block": "- " * 200_000,
    "deep keys": "? " * 200_000,
    "deep aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100)),
    "many values": "- a\n" * 250_000,
    "many keys": "".join(f"a{i}:\n" for i in range(110_000)),
    "same key": "a:\n" * 300_000,
    "many anchors": "- &a a\n" * 140_000,
    "long word": "a: " + "x" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_fast(name: str) -> None:
    started = time.process_time()
    problems = told(BOMBS[name])
    assert time.process_time() - started < 2
    assert bool(problems) == (name != "long word")
    assert len(problems) <= 101


def test_the_deepest_nesting_allowed_is_allowed() -> None:
    assert told("[" * DEEPEST + "]" * DEEPEST) == []
    assert told("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)) != []


def test_lone_surrogates_are_refused_by_both_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(r'a: "\ud800"') != []
    monkeypatch.delattr(yaml, "CLoader", raising=False)
    assert only(r'a: "\ud800"') == ("half of a surrogate pair is not a character", "r.yaml:1:4")


def test_the_pure_python_parser_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {b: [1, 'two', |-\n"
    good = "# c\na: &x {b: [1, 'two', 3.5]}\nc: *x\nd: |\n  block\n  text\ne: >-\n  folded\n"
    fast = value(good), told(text)
    monkeypatch.delattr(yaml, "CLoader", raising=False)
    slow = (value(good), told(text))
    assert slow[0] == fast[0]
    assert [p.title for p in slow[1]] == [p.title for p in fast[1]] == ["the file is not valid YAML"]


def usable(content: bytes) -> None:
    node, problems = parse(content, Path("/p/r.yaml"), "r.yaml")
    assert node is not None or problems
    for p in problems:
        assert p.where is not None
        assert p.where.line >= 1
        assert p.where.column >= 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_bytes_raise(content: bytes) -> None:
    usable(content)


YAML_PIECES = st.lists(
    st.sampled_from([
        "a", "b", ": ", ":", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&x ", "*x", "!!int ", "!t ", "'", '"', "|\n",
        ">-\n", "#", "? ", "%YAML 1.1\n", "---\n", "...\n", "1", "\\", "\\0", "\\ud800", "\t", "${A}", "<<", "é",
        "\u2028", "\x85", "\r", "@", "`", "~",
    ])
)  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(YAML_PIECES)
def test_no_text_of_yaml_pieces_raises(pieces: list[str]) -> None:
    usable("".join(pieces).encode())


def test_no_damaged_recipe_raises() -> None:
    good = b"model: m\ntargets:\n  a: {kind: text, path: x.txt}\n  b:\n    kind: join\n    from: [a, 'b[x=1]']\n"
    generator = random.Random(0)
    for _ in range(500):
        content = bytearray(good)
        for _ in range(generator.randrange(1, 5)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        usable(bytes(content))
