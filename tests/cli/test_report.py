"""`report`, and what `show` and `diff` tell of figures: beside each other, with the change since the build before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.sandbox import Sandbox, kind_source

SCORED = kind_source(
    """
text = ctx.sources["path"].read_text().split()
(ctx.out / "value.txt").write_text("x" * int(text[0]))
figures = {"cosine": float(text[1]), "odd": 1.0}
ctx.describe(Descriptor(format="text", extras=("value.txt",), metrics=figures))
""".strip()
)
QUALITY = """
    onnx:     {kind: onnx, path: model.onnx}
    rows:     {kind: dataset, path: rows.npz}
    small:    {kind: int4, from: onnx, block_size: 16, matrix: {bits: [4, 8]}}
    verified:
      kind: verified
      from: small[bits=8]
      against: onnx
      data: rows
      require: {cosine: {min: 0.9}, max_abs: {max: 9}, last_hidden_state.mean_abs: {max: 9}}
    speed:    {kind: benchmark, from: small, baseline: onnx, sequence: [8], rounds: 5}
    best:
      kind: ranked
      from: small
      benchmark: speed
      by: [{metric: cosine_worst, goal: max}, {metric: size, goal: min}]
"""


@pytest.fixture
def scored(sandbox: Sandbox) -> Sandbox:
    """One target whose size and cosine a file says, built twice."""
    sandbox.kinds(scored=SCORED)
    sandbox.recipe("a: {kind: scored, path: a.txt}")
    sandbox.data("a.txt", "1000 0.98")
    sandbox.built()
    sandbox.data("a.txt", "1100 0.985")
    sandbox.built()
    return sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Real models: verified, measured and put in order."""
    sandbox = Sandbox(tmp_path_factory.mktemp("quality"))
    sandbox.recipe(QUALITY)
    models.write_onnx(sandbox.root / "recipes" / "model.onnx", width=64)
    ids = np.random.default_rng(0).integers(0, models.VOCAB_SIZE, (4, 8))
    np.savez(sandbox.root / "recipes" / "rows.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    sandbox.built("verified", "best")
    return sandbox


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- report -----------------------------------------------------------------------------------------------------


def test_a_target_is_told_with_what_changed(scored: Sandbox) -> None:
    ran = scored.run("report")

    assert (ran.code, ran.err) == (0, "")
    assert cells(ran.out, "target") == ["target", "state", "size", "`cosine`"]
    name, state, size, cosine = cells(ran.out, "`r:a`")
    assert (name, state, cosine) == ("`r:a`", "up to date", "0.985 (+0.005)")
    assert re.fullmatch(r"1\.\d kB \(\+\d+\.\d %\)", size)


def test_what_was_never_built_has_a_row(scored: Sandbox) -> None:
    scored.recipe("a: {kind: scored, path: a.txt}\nb: {kind: upper, from: a}")

    assert cells(scored.run("report").out, "`r:b`") == ["`r:b`", "stale", "", ""]
    assert "`r:b`" not in scored.run("report", "a").out


def test_a_stale_target_is_told_as_it_was_last_built(scored: Sandbox) -> None:
    scored.data("a.txt", "1 0.5")

    _, state, _, cosine = cells(scored.run("report").out, "`r:a`")
    assert (state, cosine) == ("stale", "0.985 (+0.005)")


def test_a_damaged_artifact_has_no_figures(scored: Sandbox) -> None:
    value = scored.path("a") / "value.txt"
    value.chmod(0o644)
    value.write_text("y")

    assert cells(scored.run("report").out, "`r:a`")[1:] == ["stale", ""]


def test_after_gc_there_is_nothing_to_compare_with_but_a_report_that_was_kept(scored: Sandbox, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    assert scored.run("report", "--json", "-o", str(kept)).out == ""
    scored.data("a.txt", "1100 0.99")
    scored.built()
    scored.run("gc")

    assert cells(scored.run("report").out, "`r:a`")[3] == "0.99"
    assert cells(scored.run("report", "--against", str(kept)).out, "`r:a`")[3] == "0.99 (+0.005)"


@pytest.mark.parametrize("text", ["", "[]", '{"targets": [{"target": 1}]}', "\x00"])
def test_a_file_that_is_no_report(scored: Sandbox, tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)

    ran = scored.run("report", "--against", str(tmp_path / "kept.json"))
    assert ran.code == 2
    assert "is no report" in ran.err
    assert "Traceback" not in ran.err


def test_a_report_that_is_not_there(scored: Sandbox) -> None:
    ran = scored.run("report", "--against", "/nowhere/kept.json")
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_ci_gets_the_tables_in_its_summary(scored: Sandbox, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")

    ran = scored.run("report", GITHUB_STEP_SUMMARY=str(summary))

    assert summary.read_text() == f"before\n{ran.out}"


def test_it_is_written_to_a_file(scored: Sandbox, tmp_path: Path) -> None:
    told = scored.run("report").out

    assert scored.run("report", "--output", str(tmp_path / "r.md")).out == ""
    assert (tmp_path / "r.md").read_text() == told


def test_figures_of_others_are_no_markup(sandbox: Sandbox) -> None:
    body = 'ctx.describe(Descriptor(format="text", metrics={"cosine": 1.0, "<b>|`x`": 2.0}))'
    sandbox.kinds(scored=kind_source(body))
    sandbox.recipe("a: {kind: scored}")
    sandbox.built()

    assert "<b>" not in sandbox.run("report").out
    assert sandbox.run("report", "--json").json["targets"][0]["now"]["figures"]["<b>|`x`"] == 2


def test_requirements_measurements_and_places_have_their_tables(quality: Sandbox) -> None:
    told = quality.run("report").out
    data = {e["target"]: e for e in quality.run("report", "--json").json["targets"]}

    assert "#### `r:verified[bits=8]`: required" in told
    assert cells(told, "`cosine`")[:2] == ["`cosine`", "at least 0.9"]
    assert cells(told, "`last_hidden_state.mean_abs`")[1] == "at most 9"
    assert float(cells(told, "`cosine`")[2]) == data["r:verified[bits=8]"]["now"]["figures"]["cosine"]
    assert "#### `r:speed`: measured" in told
    assert re.search(r"^on .*, \d+ cores$", told, re.MULTILINE)
    speedup = data["r:speed"]["now"]["figures"]["small[bits=8] 1x8, 1 thread speedup"]
    assert f"{speedup:.3g}" in cells(told, "`small[bits=8]`")
    assert "#### `r:best`: candidates" in told
    assert cells(told, "1")[1] == "`small[bits=8]`"
    header = cells(told, "target")
    assert {"`cosine`", "`cosine_worst`", "`max_abs`"} <= {*header}
    assert float(cells(told, "`r:verified[bits=8]`")[header.index("`cosine`")]) >= 0.9


def test_what_was_measured_on_another_machine_is_compared_by_ratio_alone(quality: Sandbox, tmp_path: Path) -> None:
    kept = json.loads(quality.run("report", "--json").out)
    (speed,) = (e["now"] for e in kept["targets"] if e["target"] == "r:speed")
    speed["benchmark"]["environment"]["cpu"] = "abacus"
    for cell in (c for m in speed["benchmark"]["candidates"] for c in m["cells"]):
        cell["latency_p50"], cell["speedup"] = 2 * cell["latency_p50"], 9.0
    (tmp_path / "kept.json").write_text(json.dumps(kept))

    _, _, _, p50_change, _, _, _, speedup_change = cells(
        quality.run("report", "--against", str(tmp_path / "kept.json")).out, "`small[bits=8]`"
    )
    assert p50_change == ""
    assert speedup_change.startswith("-")


# --- show and diff ----------------------------------------------------------------------------------------------


def test_show_tells_the_change(scored: Sandbox) -> None:
    assert re.search(r"figure cosine +0\.985 \(\+0\.005 since the build before\)", scored.run("show", "a").out)
    (data,) = scored.run("show", "a", "--json").json
    assert (data["measured"]["figures"]["cosine"], data["before"]["figures"]["cosine"]) == (0.985, 0.98)


def test_show_has_the_tables(quality: Sandbox) -> None:
    assert re.search(r"required\n.*\n +cosine +at least 0.9 +[01]\.?\d*", quality.run("show", "verified").out)
    assert re.search(r"small\[bits=4\] +1x8, 1 thread", quality.run("show", "speed").out)
    assert re.search(r"2 +small\[bits=4\]", quality.run("show", "best").out)


def test_diff_has_figures_beside_each_other_with_the_change(scored: Sandbox) -> None:
    (data,) = scored.run("show", "a", "--json").json
    (before,) = {*scored.keys()} - {data["key"]}

    told = scored.run("diff", before, "a").out

    assert re.search(r"cosine +0\.98 +0\.985 +\+0\.005", told)
    assert re.search(r"odd +1 +1\n", told)


def test_diff_compares_what_was_measured(quality: Sandbox) -> None:
    figures = quality.run("diff", "onnx", "verified", "--json").json["figures"]
    assert figures["cosine"][0] is None
    assert figures["last_hidden_state.mean_abs"][1] > 0
    assert quality.run("diff", "speed", "speed", "--json").json["figures"]["small[bits=4] 1x8, 1 thread latency_p99"]
    assert quality.run("diff", "best", "best", "--json").json["figures"]["small[bits=4] rank"] == [2, 2]
