"""The graph of a project's recipes: references, variants, circles and selection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbuild import project
from modelbuild.errors import Problem, ProblemError
from modelbuild.project import Project
from tests import plugin

TWO = '''"""Takes two."""

from modelbuild.kind import Ref, Spec as BaseSpec

VERSION, TOOLS, HARDWARE, RESOURCES = 1, {}, (), ()


class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref
    against: Ref


def build(spec, ctx):
    pass
'''


@pytest.fixture(autouse=True, scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin.installed(tmp_path_factory.mktemp("plugin"), {"two": TWO}):
        yield


class Recipes:
    """Recipes in a folder, loaded together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "recipes").mkdir()

    def load(self, **texts: str) -> Project:
        for name, text in texts.items():
            head = "" if text.lstrip().startswith(("targets:", "default:")) else "targets:\n"
            (self.root / "recipes" / f"{name}.yaml").write_text(head + text)
        return project.load(self.root, {})

    def problems(self, **texts: str) -> list[Problem]:
        with pytest.raises(ProblemError) as caught:
            self.load(**texts)
        return list(caught.value.problems)


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    return Recipes(tmp_path)


CHAIN = """
  a: {kind: text, path: a.txt}
  b: {kind: upper, from: a}
  c: {kind: join, from: [a, b]}
"""
MATRIX = """
  a: {kind: text, path: a.txt}
  m: {kind: join, from: [a], matrix: {sep: [x, y]}}
"""


# --- order ------------------------------------------------------------------------------------------------------


def test_inputs_come_before_what_is_made_of_them_in_whatever_order_they_are_written(recipes: Recipes) -> None:
    graph = recipes.load(
        r="  c: {kind: upper, from: b}\n  b: {kind: upper, from: a}\n  a: {kind: text, path: x}\n"
    ).graph

    assert list(graph.nodes) == ["r:a", "r:b", "r:c"]


def test_the_closure_has_all_that_is_needed_and_nothing_else(recipes: Recipes) -> None:
    graph = recipes.load(r=CHAIN + "  d: {kind: upper, from: a}\n").graph

    assert graph.closure(["r:c"]) == ("r:a", "r:b", "r:c")
    assert graph.closure(["r:d", "r:a"]) == ("r:a", "r:d")
    assert graph.closure([]) == ()


def test_dependents_are_those_that_refer_directly(recipes: Recipes) -> None:
    graph = recipes.load(r=CHAIN).graph

    assert graph.dependents("r:a") == ("r:b", "r:c")
    assert graph.dependents("r:c") == ()


def test_an_input_named_twice_is_needed_once(recipes: Recipes) -> None:
    node = recipes.load(r="  a: {kind: text, path: x}\n  b: {kind: join, from: [a, a]}\n").graph.nodes["r:b"]

    assert list(node.needs()) == ["r:a"]
    assert node.inputs == {"from": ("r:a", "r:a")}


# --- variants ---------------------------------------------------------------------------------------------------


def test_a_matrix_makes_a_node_for_each_value(recipes: Recipes) -> None:
    graph = recipes.load(r=MATRIX).graph

    assert list(graph.nodes) == ["r:a", "r:m[sep=x]", "r:m[sep=y]"]
    assert graph.nodes["r:m[sep=y]"].short == "m[sep=y]"
    assert graph.nodes["r:m[sep=y]"].base == "r:m"


def test_variants_flow_through_a_reference_to_one_input(recipes: Recipes) -> None:
    graph = recipes.load(r=MATRIX + "  u: {kind: upper, from: m}\n").graph

    assert graph.nodes["r:u[sep=x]"].inputs == {"from": ("r:m[sep=x]",)}
    assert graph.nodes["r:u[sep=y]"].inputs == {"from": ("r:m[sep=y]",)}
    assert "r:u" not in graph.nodes


def test_a_list_of_inputs_takes_all_variants(recipes: Recipes) -> None:
    graph = recipes.load(r=MATRIX + "  j: {kind: join, from: [m, a]}\n").graph

    assert graph.nodes["r:j"].inputs == {"from": ("r:m[sep=x]", "r:m[sep=y]", "r:a")}


def test_a_reference_may_name_one_variant(recipes: Recipes) -> None:
    graph = recipes.load(r=MATRIX + "  u: {kind: upper, from: 'm[sep=y]'}\n").graph

    assert graph.nodes["r:u[sep=y]"].inputs == {"from": ("r:m[sep=y]",)}
    assert len(graph.nodes) == 4


def test_axes_of_two_levels_multiply(recipes: Recipes) -> None:
    graph = recipes.load(r=MATRIX + "  u: {kind: upper, from: m, matrix: {salt: [s, t]}}\n").graph

    names = [n for n in graph.nodes if n.startswith("r:u")]
    assert len(names) == 4
    assert {frozenset(n[4:-1].split(",")) for n in names} == {
        frozenset({f"salt={s}", f"sep={x}"}) for s in "st" for x in "xy"
    }


def test_the_same_axis_of_two_targets_is_told_apart(recipes: Recipes) -> None:
    text = (
        MATRIX
        + "  n: {kind: slow, from: m, matrix: {seconds: [1, 2]}}\n  o: {kind: slow, from: n, matrix: {seconds: [3]}}\n"
    )
    names = [n for n in recipes.load(r=text).graph.nodes if n.startswith("r:o")]

    assert len(names) == 4
    assert all("n.seconds=" in n and "o.seconds=3" in n for n in names)


def test_the_arms_of_a_diamond_join_where_their_variants_agree(recipes: Recipes) -> None:
    text = MATRIX + "  u: {kind: upper, from: m}\n  v: {kind: upper, from: m}\n  w: {kind: two, from: u, against: v}\n"
    graph = recipes.load(r=text).graph

    assert [n for n in graph.nodes if n.startswith("r:w")] == ["r:w[sep=x]", "r:w[sep=y]"]
    assert graph.nodes["r:w[sep=x]"].inputs == {"from": ("r:u[sep=x]",), "against": ("r:v[sep=x]",)}


def test_no_such_variant_is_a_problem_that_lists_them(recipes: Recipes) -> None:
    (problem,) = recipes.problems(r=MATRIX + "  u: {kind: upper, from: 'm[sep=z]'}\n")

    assert problem.title == "no variant of `r:m` matches `m[sep=z]`"
    assert problem.facts == (("variants", "m[sep=x], m[sep=y]"),)
    assert str(problem.where) == "recipes/r.yaml:5:26"


def test_too_many_variants_are_a_problem_and_not_a_full_memory(recipes: Recipes) -> None:
    values = ", ".join(f"v{n}" for n in range(400))
    text = (
        "  a: {kind: text, path: x}\n"
        f"  m: {{kind: upper, from: a, matrix: {{salt: [{values}]}}}}\n"
        f"  n: {{kind: upper, from: m, matrix: {{salt: [{values}]}}}}\n"
        f"  o: {{kind: upper, from: n, matrix: {{salt: [{values}]}}}}\n"
    )
    titles = [p.title for p in recipes.problems(r=text)]

    assert titles[0] == "target `n` has more than 1,000 variants"


# --- references -------------------------------------------------------------------------------------------------


def test_a_target_of_another_recipe_is_referred_to_by_its_full_name(recipes: Recipes) -> None:
    graph = recipes.load(one="  a: {kind: text, path: x}\n", two="  b: {kind: upper, from: 'one:a'}\n").graph

    assert graph.nodes["two:b"].inputs == {"from": ("one:a",)}
    assert list(graph.nodes) == ["one:a", "two:b"]


def test_variants_flow_across_recipes(recipes: Recipes) -> None:
    graph = recipes.load(one=MATRIX, two="  b: {kind: upper, from: 'one:m'}\n").graph

    assert graph.nodes["two:b[sep=x]"].inputs == {"from": ("one:m[sep=x]",)}


def test_a_mistyped_reference_is_told_with_a_suggestion(recipes: Recipes) -> None:
    (problem,) = recipes.problems(r=CHAIN + "  last: {kind: upper, from: lsat}\n")

    assert problem.title == "unknown target `lsat`"
    assert problem.hint == "did you mean `last`?"
    assert str(problem.where) == "recipes/r.yaml:6:29"


def test_a_target_that_only_another_recipe_has_is_pointed_to(recipes: Recipes) -> None:
    (problem,) = recipes.problems(
        one="  checkpoint: {kind: text, path: x}\n", two="  b: {kind: upper, from: checkpoint}\n"
    )

    assert problem.hint == "another recipe has one: `one:checkpoint`"


def test_a_mistyped_recipe_is_told_with_a_suggestion(recipes: Recipes) -> None:
    (problem,) = recipes.problems(minilm=CHAIN, r="  b: {kind: upper, from: 'minlm:a'}\n")

    assert (problem.title, problem.hint) == ("unknown recipe `minlm`", "did you mean `minilm`?")


def test_every_wrong_reference_of_every_recipe_is_told_at_once(recipes: Recipes) -> None:
    problems = recipes.problems(
        one="  a: {kind: upper, from: nope}\n  b: {kind: upper, from: neither}\n", two="  c: {kind: upper, from: no}\n"
    )

    assert [p.title for p in problems] == [f"unknown target `{n}`" for n in ("nope", "neither", "no")]


# --- circles ----------------------------------------------------------------------------------------------------


def test_a_circle_is_told_once_with_its_way_round(recipes: Recipes) -> None:
    (problem,) = recipes.problems(
        r="  a: {kind: upper, from: c}\n  b: {kind: upper, from: a}\n  c: {kind: upper, from: b}\n"
        "  d: {kind: upper, from: c}\n"
    )

    assert problem.title == "targets refer to each other in a circle"
    assert problem.facts == (("circle", "`a` → `c` → `b` → `a`"),)
    assert str(problem.where) == "recipes/r.yaml:2:26"


def test_a_circle_through_two_recipes_is_found(recipes: Recipes) -> None:
    (problem,) = recipes.problems(one="  a: {kind: upper, from: 'two:b'}\n", two="  b: {kind: upper, from: 'one:a'}\n")

    assert "circle" in problem.title


def test_two_circles_are_two_problems(recipes: Recipes) -> None:
    problems = recipes.problems(
        r="  a: {kind: upper, from: a}\n  b: {kind: upper, from: c}\n  c: {kind: upper, from: b}\n"
    )

    assert len([p for p in problems if "circle" in p.title]) == 2


def test_a_circle_hides_no_other_problem(recipes: Recipes) -> None:
    titles = {p.title for p in recipes.problems(r="  a: {kind: upper, from: a}\n  b: {kind: upper, from: nope}\n")}

    assert titles == {"targets refer to each other in a circle", "unknown target `nope`"}


def test_a_chain_of_thousands_is_no_circle_and_no_recursion(recipes: Recipes) -> None:
    lines = ["  t0: {kind: text, path: x}\n", *(f"  t{n}: {{kind: upper, from: t{n - 1}}}\n" for n in range(1, 3000))]
    graph = recipes.load(r="".join(reversed(lines))).graph

    assert len(graph.closure(["r:t2999"])) == 3000


# --- selection --------------------------------------------------------------------------------------------------

SHELF = {
    "one": "  a: {kind: text, path: x}\n  m: {kind: join, from: [a], matrix: {sep: [x, y]}}\n"
    "  int8: {kind: upper, from: a}\n",
    "two": "  a: {kind: text, path: x}\n  int8: {kind: upper, from: a}\n  int4: {kind: upper, from: a}\n",
}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("one:a", "one:a"),
        ("a", "one:a two:a"),
        ("int8", "one:int8 two:int8"),
        ("two", "two:int8 two:int4"),
        ("m", "one:m[sep=x] one:m[sep=y]"),
        ("one:m", "one:m[sep=x] one:m[sep=y]"),
        ("m[sep=y]", "one:m[sep=y]"),
        ("one:m[sep=x]", "one:m[sep=x]"),
        ("int*", "one:int8 two:int8 two:int4"),
        ("two:int*", "two:int8 two:int4"),
        ("*:int8", "one:int8 two:int8"),
        ("t?o:a", "two:a"),
        ("t*", "two:int8 two:int4"),
        ("two:*", "two:a two:int8 two:int4"),
        ("*[sep=x]", "one:m[sep=x]"),
        ("one:a one:a a", "one:a two:a"),
        ("", "one:m[sep=x] one:m[sep=y] one:int8 two:int8 two:int4"),
    ],
)
def test_a_pattern_selects(recipes: Recipes, patterns: str, expected: str) -> None:
    selected = recipes.load(**SHELF).select(tuple(patterns.split()))

    assert sorted(selected) == sorted(expected.split())
    assert len(set(selected)) == len(selected)


@pytest.mark.parametrize(
    "pattern", ["nope", "one:int4", "three:a", "m[sep=z]", "m[other=x]", "a[sep=x]", ":", "[", "one:"]
)
def test_a_pattern_that_means_nothing_is_a_problem(recipes: Recipes, pattern: str) -> None:
    with pytest.raises(ProblemError) as caught:
        recipes.load(**SHELF).select((pattern, "a"))

    (problem,) = caught.value.problems
    assert problem.title == f"no target matches `{pattern}`"


def test_every_pattern_that_means_nothing_is_told(recipes: Recipes) -> None:
    with pytest.raises(ProblemError) as caught:
        recipes.load(**SHELF).select(("x1", "a", "x2"))

    assert len(caught.value.problems) == 2


def test_a_recipe_with_defaults_means_those(recipes: Recipes) -> None:
    opened = recipes.load(r=f"default: [b]\ntargets:{CHAIN}")

    assert opened.select(("r",)) == opened.select(()) == ("r:b",)


def test_a_recipe_without_defaults_means_its_leaves(recipes: Recipes) -> None:
    assert recipes.load(r=CHAIN + "  d: {kind: upper, from: a}\n").select(("r",)) == ("r:c", "r:d")


def test_a_leaf_that_only_another_recipe_uses_is_a_leaf_still(recipes: Recipes) -> None:
    opened = recipes.load(one="  a: {kind: text, path: x}\n", two="  b: {kind: upper, from: 'one:a'}\n")

    assert opened.select(("one",)) == ("one:a",)


def test_an_unknown_default_is_a_problem(recipes: Recipes) -> None:
    (problem,) = recipes.problems(r=f"default: [nope]\ntargets:{CHAIN}")

    assert problem.title == "unknown target `nope`"
    assert str(problem.where) == "recipes/r.yaml:1:11"
