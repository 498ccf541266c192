"""tuned: trials are targets like any other, through the real command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.sandbox import Ran, Sandbox

MODEL = '''"""A model whose figures follow from its options."""

from __future__ import annotations

import time

from modelbuild.artifact import Component, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Context, Ref, Source, Spec as BaseSpec

VERSION = 1
TOOLS: dict[str, str] = {}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()


class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref | None = None
    path: Source | None = None
    x: float = 0.0
    n: int = 1
    word: str = "a"
    words: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.x > 100:
            raise ValueError("x is too large")


def build(spec: Spec, ctx: Context) -> None:
    if spec.word == "broken":
        raise problem("the word is broken", hint="mend it")
    time.sleep(spec.seconds)
    (ctx.out / "model.bin").write_bytes(b"m" * (100 * spec.n) + repr((spec.x, spec.word, spec.words)).encode())
    figures = {"score": 1.0 - (spec.x - 3.0) ** 2, "n": float(spec.n)}
    ctx.describe(Descriptor(format="onnx", components={"model": Component("model.bin")}, metrics=figures))
'''

PASSES = '''"""The model of `from`, if its score is high enough."""

from __future__ import annotations

from modelbuild.errors import problem
from modelbuild.kind import Context, Ref, Spec as BaseSpec

VERSION = 1
TOOLS: dict[str, str] = {}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ("one",)


class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref
    least: float = -1e9


def build(spec: Spec, ctx: Context) -> None:
    model = ctx.input()
    score = model.descriptor.metrics["score"]
    if score < spec.least:
        raise problem("the score is too low", score=score)
    ctx.link(model.path / "model.bin", ctx.out / "model.bin")
    ctx.describe(model.descriptor)
'''

CHAIN = """
model: {kind: model}
gated: {kind: passes, from: model}
"""
SCORE = "by: [{metric: score, goal: max}]"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    made = Sandbox(tmp_path)
    made.kinds(model=MODEL, passes=PASSES)
    return made


def tuned(sandbox: Sandbox, options: str, chain: str = CHAIN) -> None:
    sandbox.recipe(f"{chain}best: {{kind: tuned, from: gated, stages: [model], {options}}}\n")


def table(sandbox: Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sandbox.path("best") / "tuned.json").read_bytes())
    return found


def title(ran: Ran) -> str:
    assert ran.code == 2, ran
    assert {p["where"]["path"] for p in ran.problems} == {"recipes/r.yaml"}
    text: str = ran.problems[0]["title"]
    return text


class TestSearch:
    def test_a_grid_is_tried_whole_and_the_best_passes_through(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3, 4], model.n: {{low: 1, high: 2}}}}, sampler: grid, {SCORE}")
        ran = sandbox.built("best")
        found = table(sandbox)
        tried = sorted((c["options"]["model.x"], c["options"]["model.n"]) for c in found["candidates"] if c["options"])
        assert tried == [(x, n) for x in (1, 2, 3, 4) for n in (1, 2)]
        assert found["best"]["model.x"] == 3
        assert found["candidates"][0]["figures"] == {"score": 1.0}
        assert found["candidates"][0]["why"] == "the best"
        assert {c["name"] for c in found["candidates"]} >= {"as the recipe has it"}
        assert b"(3.0, 'a', ())" in (sandbox.path("best") / "model.bin").read_bytes()
        assert sum("trial" in t for t in ran.built) == 16  # each trial has a model and a gate

    def test_what_won_is_there_when_the_recipe_takes_it_over(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3]}}, {SCORE}")
        sandbox.built("best")
        sandbox.edit("{kind: model}", "{kind: model, x: 3}")
        ran = sandbox.built("gated")
        assert (ran.built, ran.restored) == ([], ["model", "gated"])

    def test_nothing_is_done_twice_and_nothing_when_nothing_changed(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3]}}, {SCORE}")
        sandbox.built("best")
        assert sandbox.built("best").fresh == ["model", "gated", "best"]
        sandbox.edit("[1, 2, 3]", "[1, 2, 3, 4]")
        again = sandbox.built("best")
        assert sorted(again.built) == sorted({"best", *(t for t in again.built if "trial" in t)})
        assert len([t for t in again.built if t.startswith("model (")]) == 1

    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    def test_a_search_of_a_range_is_the_same_each_time(self, sandbox: Sandbox, tmp_path: Path, sampler: str) -> None:
        options = f"space: {{model.x: {{low: -5.0, high: 5.0}}}}, trials: 8, sampler: {sampler}, {SCORE}"
        tuned(sandbox, options)
        sandbox.edit("from: gated", "from: model")
        first = sandbox.copy(tmp_path / "other")
        digests = [each.built("best").digests["r:best"] for each in (sandbox, first)]
        assert digests[0] == digests[1]
        assert len(table(sandbox)["candidates"]) == 9
        assert table(sandbox)["candidates"][0]["figures"]["score"] > -8.0  # better than the recipe's own
        sandbox.edit("trials: 8", "trials: 8, seed: 1")
        assert sandbox.built("best").digests["r:best"] != digests[0]

    def test_tpe_learns_where_it_is_good(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: {{low: -50.0, high: 50.0}}}}, trials: 30, {SCORE}")
        sandbox.edit("from: gated", "from: model")
        sandbox.built("best")
        found = [c["options"]["model.x"] for c in table(sandbox)["candidates"] if c["options"]]
        assert len(found) == 30
        assert abs(found[0] - 3.0) < 2.0
        assert sum(abs(x - 3.0) < 15 for x in found) > 12  # a third of the range holds more than its share

    def test_thresholds_come_before_goals(self, sandbox: Sandbox) -> None:
        by = "by: [{metric: score, at_least: 0.0}, {metric: size, goal: min}]"
        tuned(sandbox, f"space: {{model.x: [3], model.n: [2, 3, 4]}}, {by}")
        sandbox.built("best")
        found = table(sandbox)
        assert found["best"] == {"model.x": 3, "model.n": 2}
        last = found["candidates"][-1]
        assert (last["name"], last["rank"]) == ("as the recipe has it", None)
        assert last["why"] == "score -8 is not at least 0"

    def test_a_search_ends_when_the_best_is_good_enough(self, sandbox: Sandbox) -> None:
        until = "until: [{metric: score, at_least: 0.9}]"
        tuned(sandbox, f"space: {{model.x: {{low: 0, high: 100, step: 1}}}}, sampler: grid, {until}, {SCORE}")
        sandbox.edit("kind: model}", "kind: model, x: 3}")
        ran = sandbox.built("best")
        assert ran.built == ["model", "gated", "best"]
        assert table(sandbox)["best"] == {}

    def test_a_time_limit_lets_no_trial_start(self, sandbox: Sandbox) -> None:
        options = f"space: {{model.seconds: [0.6, 0.61, 0.62]}}, time_limit_seconds: 0.5, {SCORE}"
        tuned(sandbox, options)
        ran = sandbox.built("best")
        assert sum(t.startswith("model (trial") for t in ran.built) == 1

    def test_trials_that_fail_are_out_and_said(self, sandbox: Sandbox) -> None:
        chain = CHAIN.replace("from: model}", "from: model, least: -8.5}")
        tuned(sandbox, f"space: {{model.word: [broken, fine], model.x: [2, 90]}}, sampler: grid, {SCORE}", chain)
        sandbox.built("best")
        found = table(sandbox)
        assert found["best"] == {"model.word": "fine", "model.x": 2}
        why = {each["name"]: each["why"] for each in found["failed"]}
        assert why["model.word=fine, model.x=90"].startswith("the score is too low; score: -7568")
        assert sorted(n for n, w in why.items() if w.startswith("the word is broken")) == [
            "model.word=broken, model.x=2",
            "model.word=broken, model.x=90",
        ]

    def test_no_trial_meets_the_thresholds(self, sandbox: Sandbox) -> None:
        tuned(sandbox, "space: {model.x: [1, 2]}, by: [{metric: score, goal: max, at_least: 1.5}]")
        ran = sandbox.build("best")
        assert ran.code == 1
        (found,) = ran.problems
        assert found["title"] == "no trial meets the thresholds"
        assert ["model.x=2", "score 0 is not at least 1.5"] in found["facts"]
        assert ran.built[:2] == ["model", "gated"]

    def test_lists_can_be_tried(self, sandbox: Sandbox) -> None:
        by = "by: [{metric: size, goal: min}]"
        tuned(sandbox, f"space: {{model.words: [[one], [one, two], []]}}, {by}")
        sandbox.built("best")
        assert {json.dumps(c["options"].get("model.words")) for c in table(sandbox)["candidates"]} == {
            "null",  # the recipe's own, which is the empty list
            '["one"]',
            '["one", "two"]',
        }


def test_a_real_chain(tmp_path: Path) -> None:
    """Quantized models that are compared with the original and timed beside it."""
    sandbox = Sandbox(tmp_path)
    models.write_onnx(sandbox.root / "recipes" / "model.onnx", width=64)
    sandbox.recipe("""
        onnx:  {kind: onnx, path: model.onnx}
        small: {kind: int4, from: onnx, block_size: 16}
        speed: {kind: benchmark, from: small, baseline: onnx, sequence: [8], rounds: 5}
        best:
          kind: tuned
          from: small
          benchmark: speed
          stages: [small]
          space: {small.bits: [4, 8], small.block_size: [16, 32]}
          sampler: grid
          by: [{metric: cosine_worst, goal: max}, {metric: speedup, goal: max}]
        end:   {kind: zip, from: best}
    """)
    sandbox.built("end")
    found = table(sandbox)
    assert found["best"] == {"small.bits": 8, "small.block_size": 16}
    assert len(found["candidates"]) == 4  # one of the grid's is the recipe's own
    assert all(set(c["figures"]) == {"cosine_worst", "speedup"} for c in found["candidates"])
    sandbox.edit("block_size: 16}", "block_size: 16, bits: 8}")
    ran = sandbox.built("small", "speed")
    assert (ran.built, ran.restored) == ([], ["small", "speed"])
    assert (sandbox.path("best") / "model.onnx").read_bytes() == (sandbox.path("small") / "model.onnx").read_bytes()


class TestTrust:
    def test_a_search_that_was_killed_goes_on(self, sandbox: Sandbox) -> None:
        chain = CHAIN.replace("{kind: model}", "{kind: model, seconds: 0.2}")
        tuned(sandbox, f"space: {{model.x: {{low: -5.0, high: 5.0}}}}, trials: 5, {SCORE}", chain)
        whole = sandbox.copy(sandbox.root.parent / "whole")
        process = sandbox.start("build", "best")
        deadline = time.monotonic() + 60
        while len(sandbox.keys()) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        kept = len(sandbox.keys())
        assert kept >= 6
        ran = sandbox.built("best")
        assert len(ran.restored) >= kept - 3
        assert len(ran.built) <= 13 - kept + 1
        assert ran.digests["r:best"] == whole.built("best").digests["r:best"]
        sandbox.run("gc")
        assert sandbox.leftovers() == []

    def test_gc_takes_the_losers_and_leaves_the_winner(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3]}}, {SCORE}")
        sandbox.built("best")
        content = (sandbox.path("best") / "model.bin").read_bytes()
        assert sandbox.run("gc", "--keep-days", "0").code == 0
        assert len(sandbox.keys()) == 3
        assert sandbox.built("best").fresh == ["model", "gated", "best"]
        assert (sandbox.path("best") / "model.bin").read_bytes() == content
        assert sandbox.run("verify").code == 0

    def test_names_stay_with_what_the_recipe_says(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3]}}, {SCORE}")
        sandbox.built("gated")
        before = sandbox.key("model"), sandbox.key("gated")
        sandbox.built("best")
        assert (sandbox.key("model"), sandbox.key("gated")) == before
        assert "was never built" in sandbox.run("why", "model").out

    def test_what_a_stage_is_made_of_counts(self, sandbox: Sandbox) -> None:
        sandbox.data("a.txt", "one")
        chain = CHAIN.replace("{kind: model}", "{kind: model, path: a.txt}")
        tuned(sandbox, f"space: {{model.x: [1, 2, 3]}}, {SCORE}", chain)
        sandbox.built("best")
        sandbox.data("a.txt", "two")  # the model comes out the same: the key of what is tried does not
        ran = sandbox.built("best")
        assert "best" in ran.built
        assert sum(t.startswith("model (trial") for t in ran.built) == 3

    def test_trials_beside_other_builds(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1, 2, 3], model.seconds: [0.1]}}, {SCORE}")
        path = sandbox.root / "recipes" / "r.yaml"
        path.write_text(path.read_text() + "  other: {kind: tuned, from: gated, stages: [model], "
                        f"space: {{model.x: [3, 4], model.seconds: [0.1]}}, {SCORE}}}\n")  # fmt: skip
        ran = sandbox.built("best", "other", "-j", "4")
        models = [t.split(" ")[0] for t in ran.built if t.startswith("model (")]
        assert len(models) == 4  # x = 3 is built by one and taken by the other
        assert table(sandbox)["best"]["model.x"] == 3

    def test_interrupted_it_leaves_nothing(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.seconds: [30.0, 31.0]}}, {SCORE}")
        process = sandbox.start("build", "best")
        deadline = time.monotonic() + 60
        while not list(sandbox.store.glob("tmp/*")) or len(sandbox.keys()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode not in (0, None)
        assert list(sandbox.store.glob("tmp/*")) == []

    def test_a_stage_that_is_repeated_alone_says_that_it_builds_no_others(self, sandbox: Sandbox) -> None:
        tuned(sandbox, "space: {model.x: [1, 2]}, by: [{metric: score, goal: max, at_least: 1.5}]")
        facts = dict(sandbox.build("best").problems[0]["facts"])
        ran = sandbox.shell(facts["repeat"])
        assert ran.code == 1
        assert "a stage that is repeated alone builds no other targets" in ran.err
        assert "Traceback" not in ran.err


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (f"space: {{model.y: [1]}}, {SCORE}", "kind `model` has no option `y`"),
            (f"space: {{model.x: [one]}}, {SCORE}", 'kind `model` does not take `x: "one"`'),
            (f"space: {{model.n: {{low: 0.5, high: 2.0}}}}, {SCORE}", "kind `model` does not take `n: 0.5`"),
            (f"space: {{model.x: {{low: 0, high: 500}}}}, {SCORE}", "kind `model` does not take `x: 500`"),
            (f"space: {{model.path: [a, b]}}, {SCORE}", "`path` of kind `model` is no option but a source"),
            (f"space: {{model.from: [a, b]}}, {SCORE}", "`from` of kind `model` is no option but a ref"),
            (f"space: {{gated.least: [1]}}, {SCORE}", "`gated.least` is no option of a target in `stages`"),
            (f"space: {{x: [1]}}, {SCORE}", "`x` is no option of a target in `stages`"),
            (f"space: {{}}, {SCORE}", None),
            (f"space: {{model.x: []}}, {SCORE}", None),
            (f"space: {{model.x: [1, 1]}}, {SCORE}", "`model.x` has a value twice"),
            (f"space: {{model.x: {{low: 2, high: 1}}}}, {SCORE}", "`model.x`: `low` is not less than `high`"),
            (f"space: {{model.x: {{low: 0, high: 1, step: 2}}}}, {SCORE}", "`model.x`: `step` is not between"),
            (f"space: {{model.x: {{low: 0, high: 1, log: true}}}}, {SCORE}", "`model.x`: `log` needs a `low` above 0"),
            (f"space: {{model.x: {{low: 0.0, high: 1.0}}}}, sampler: grid, {SCORE}", "`model.x` has no grid"),
            (f"space: {{model.x: {{low: 0, high: 1000000}}}}, sampler: grid, {SCORE}", "the grid has 1,000,001 points"),
            ("space: {model.x: [1]}, by: [{metric: score, at_least: 1}]", "nothing in `by` is a goal"),
            ("space: {model.x: [1]}, by: [{metric: latency_p50, goal: min}]", "`latency_p50` needs a `benchmark`"),
            (
                f"space: {{model.x: [1]}}, until: [{{metric: score, goal: max}}], {SCORE}",
                "a search cannot end at a goal",
            ),
            (f"space: {{model.x: [1]}}, trials: 0, {SCORE}", None),
        ],
    )
    def test_it_is_told_before_anything_is_built(self, sandbox: Sandbox, options: str, said: str | None) -> None:
        tuned(sandbox, options)
        ran = sandbox.build("best")
        assert (said or "option `") in title(ran), ran
        assert ran.built == []

    def test_a_stage_that_makes_no_difference(self, sandbox: Sandbox) -> None:
        tuned(sandbox, f"space: {{model.x: [1]}}, {SCORE}", CHAIN + "other: {kind: model}\n")
        sandbox.edit("stages: [model], space: {model.x", "stages: [other], space: {other.x")
        assert title(sandbox.build("best")) == "nothing that `best` tries depends on `other`"

    def test_a_stage_with_variants_is_to_be_named_by_one(self, sandbox: Sandbox) -> None:
        chain = CHAIN.replace("{kind: model}", "{kind: model, matrix: {n: [1, 2]}}")
        tuned(sandbox, f"space: {{model.x: [1]}}, {SCORE}", chain)
        assert "`model` means 2 targets" in title(sandbox.build("best"))
        sandbox.edit("from: gated, stages: [model]", 'from: "gated[n=2]", stages: ["model[n=2]"]')
        sandbox.edit("{model.x: [1]}", '{"model[n=2].x": [3]}')
        sandbox.built("best[n=2]")
        assert b"m" * 200 in (sandbox.path("best[n=2]") / "model.bin").read_bytes()

    def test_a_figure_that_nothing_measured(self, sandbox: Sandbox) -> None:
        tuned(sandbox, "space: {model.x: [1]}, by: [{metric: scor, goal: max}]")
        ran = sandbox.build("best")
        assert ran.code == 1
        (found,) = ran.problems
        assert found["title"] == "`as the recipe has it` has no figure `scor`"
        assert "score" in found["hint"]
        assert not any("trial" in t for t in ran.built)

    def test_a_version_that_only_a_trial_uses_counts(self, sandbox: Sandbox) -> None:
        narrows = 'def tools(spec: Spec) -> set[str]:\n    return {"fancy"} if spec.x == 2 else set()\n\n\ndef build('
        body = MODEL.replace("TOOLS: dict[str, str] = {}", 'TOOLS = {"fancy": "extra"}').replace("def build(", narrows)
        sandbox.kinds(model=body)
        sandbox.package("fancy", "1.0")
        tuned(sandbox, f"space: {{model.x: [1, 2]}}, {SCORE}")
        sandbox.built("best")
        sandbox.package("fancy", "2.0")
        ran = sandbox.built("best")
        assert {"model", "gated"} <= set(ran.fresh)
        assert "best" in ran.built
