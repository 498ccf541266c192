"""Recipes to targets: the language, and every mistake told at once where it was made."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import Problem
from modelbuild.language import recipe
from modelbuild.language.recipe import Recipe, Target
from modelbuild.project import find
from tests import plugin

TUNE = '''"""A kind with every sort of option."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from modelbuild import kind
from modelbuild.kind import Anywhere, Context, Package, Ref, Source, SpecError

VERSION = 1
TOOLS: dict[str, str] = {}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    batch: list[int]
    level: Literal["low", "high"] = "low"


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref | list[Ref]
    data: Source | None = None
    weights: Annotated[Source, Anywhere()] | None = None
    package: Package | None = None
    method: Literal["minmax", "percentile"] = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    symmetric: bool = False
    steps: int = 1
    rate: float = 1.0
    profiles: list[Profile] = []
    require: dict[str, float] = {}
    nodes: list[str] = []

    def __post_init__(self) -> None:
        if self.percentile is not None and self.method == "minmax":
            raise SpecError("`percentile` needs another method", field="percentile", hint="add `method: percentile`")


def build(spec: Spec, ctx: Context) -> None:
    pass
'''
BROKEN = "raise RuntimeError('no such library')\n"


@pytest.fixture(scope="module", autouse=True)
def _kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin.installed(tmp_path_factory.mktemp("kinds"), {"tune": TUNE, "broken": BROKEN}):
        yield


class Project:
    """A project folder: recipes by file name, and what reading them gives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "recipes").mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.root / "recipes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def read(self, **settings: str) -> tuple[tuple[Recipe, ...], tuple[Problem, ...]]:
        return recipe.read(self.root, find(self.root), settings)

    def targets(self, text: str, **settings: str) -> dict[str, Target]:
        self.write("r.yaml", text)
        (one,), problems = self.read(**settings)
        assert problems == ()
        return dict(one.targets)

    def problems(self, text: str, **settings: str) -> list[Problem]:
        self.write("r.yaml", text)
        return list(self.read(**settings)[1])

    def told(self, text: str, **settings: str) -> list[tuple[str, str]]:
        found = self.problems(text, **settings)
        return [(p.title, f"{p.where.line}:{p.where.column}" if p.where else "") for p in found]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_recipe_becomes_targets_with_specs_references_and_places(project: Project) -> None:
    path = project.write(
        "r.yaml", "targets:\n  a: {kind: text, path: x.txt}\n  b:\n    kind: join\n    from: [a, o:c]\n"
    )
    (one,), problems = project.read()
    assert problems == ()
    assert (one.name, one.path, list(one.targets), one.default) == ("r", path, ["a", "b"], ())
    a, b = one.targets.values()
    (source,) = a.sources
    assert (source.field, source.role, source.text, source.path) == (
        "path",
        "source",
        "x.txt",
        project.root / "recipes/x.txt",
    )
    assert (b.recipe, b.name, b.base, b.variant, b.kind) == ("r", "b", "b", (), "join")
    assert [(r.field, r.text, str(r.where)) for r in b.references] == [
        ("from", "a", "recipes/r.yaml:5:12"),
        ("from", "o:c", "recipes/r.yaml:5:15"),
    ]
    assert b.spec.from_ == ["a", "o:c"]  # type: ignore[attr-defined]
    assert str(b.where) == "recipes/r.yaml:3:3"
    assert str(b.fields["from"]) == "recipes/r.yaml:5:5"


def test_find_skips_files_for_others_to_extend(project: Project) -> None:
    for name in ("b.yaml", "a.yml", "sub/c.yaml", "_common.yaml", "_parts/d.yaml", "notes.txt", ".hidden.yaml"):
        project.write(name, "")
    found = [p.relative_to(project.root).as_posix() for p in find(project.root)]
    assert found == ["recipes/a.yml", "recipes/b.yaml", "recipes/sub/c.yaml"]


def test_model_names_the_recipe_and_default_its_targets(project: Project) -> None:
    project.write("r.yaml", "model: 007\ndescription: licensed\ndefault: [a, 'b[x=1]']\ntargets: {a: {kind: fail}}\n")
    (one,), problems = project.read()
    assert problems == ()
    assert one.name == "007"
    assert [(r.field, r.text) for r in one.default] == [("default", "a"), ("default", "b[x=1]")]


# Matrix


def test_matrix_makes_one_variant_for_each_combination_in_order(project: Project) -> None:
    found = project.targets(
        "targets:\n  t:\n    kind: tune\n    from: a\n"
        "    matrix: {symmetric: [True, false], rate: [1, 0.50, 1e-3]}\n    steps: 2\n"
    )
    assert list(found) == [
        "t[symmetric=true,rate=1]", "t[symmetric=true,rate=0.5]", "t[symmetric=true,rate=0.001]",
        "t[symmetric=false,rate=1]", "t[symmetric=false,rate=0.5]", "t[symmetric=false,rate=0.001]",
    ]  # fmt: skip
    last = found["t[symmetric=false,rate=0.001]"]
    assert (last.base, last.variant) == ("t", (("symmetric", "false"), ("rate", "0.001")))
    assert (last.spec.symmetric, last.spec.rate, last.spec.steps) == (False, 0.001, 2)  # type: ignore[attr-defined]
    assert str(last.fields["rate"]) == "recipes/r.yaml:5:40"


def test_matrix_varies_references_and_overrides_defaults(project: Project) -> None:
    found = project.targets(
        "defaults: {tune: {steps: 9, nodes: [n]}}\ntargets:\n  t: {kind: tune, matrix: {from: [a, b], steps: [1]}}\n"
    )
    assert [t.references[0].text for t in found.values()] == ["a", "b"]
    assert [(t.spec.steps, t.spec.nodes) for t in found.values()] == [(1, ["n"])] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("matrix", "title"),
    [
        ("{}", "`matrix` is empty"),
        ("[rate]", "`matrix` must be a map of option to values, not a list"),
        ("{rat: [1]}", "unknown option `rat` of kind `tune`"),
        ("{rate: []}", "the matrix must give `rate` a list of values, not an empty list"),
        ("{rate: 1}", "the matrix must give `rate` a list of values, not `1`"),
        ("{rate: [0.5, 0.50]}", "`0.5` is in the matrix twice"),
        ("{steps: [1, true]}", "option `steps` must be a whole number"),
        ("{nodes: [[a], [b]]}", "a matrix value cannot be a list"),
        ("{data: [a/b.txt]}", "a matrix value cannot be `a/b.txt`"),
        ("{steps: [1]}", "`steps` is both an option and in the matrix"),
        ("{rate: [" + ", ".join(map(str, range(1001))) + "]}", "`rate` has more than 1000 values in the matrix"),
        ("{rate: [1,2,3,4,5,6,7,8,9,10,11], percentile: " + str(list(range(1, 101))) + "}",
         "the matrix has 1100 variants"),
    ],
)  # fmt: skip
def test_a_matrix_that_cannot_be_is_told(project: Project, matrix: str, title: str) -> None:
    told = project.told(f"targets: {{t: {{kind: tune, from: a, steps: 1, matrix: {matrix}}}}}\n")
    assert title in [t for t, _ in told]


# Variables


def test_variables_keep_their_type_alone_and_become_text_within_one(project: Project) -> None:
    found = project.targets(
        "vars: {n: 3, on: true, word: per}\n"
        "targets:\n  t: {kind: tune, from: '${word}:x', steps: '${n}', symmetric: '${on}',"
        " nodes: ['a${n}${on}', '$${n}', '$n', '${word}'], method: '${word}centile'}\n"
    )
    spec = found["t"].spec
    assert spec.steps == 3  # type: ignore[attr-defined]
    assert spec.symmetric is True  # type: ignore[attr-defined]
    assert spec.nodes == ["a3true", "${n}", "$n", "per"]  # type: ignore[attr-defined]
    assert spec.method == "percentile"  # type: ignore[attr-defined]
    assert found["t"].references[0].text == "per:x"


@pytest.mark.parametrize(("text", "steps"), [("7", 7), ("0o17", 15), ("0x10", 16)])
def test_set_overrides_a_variable_as_yaml_would_read_it(project: Project, text: str, steps: int) -> None:
    found = project.targets("vars: {n: 3}\ntargets: {t: {kind: tune, from: a, steps: '${n}'}}\n", n=text)
    assert found["t"].spec.steps == steps  # type: ignore[attr-defined]


def test_quotes_in_set_make_text(project: Project) -> None:
    text = "vars: {n: 3}\ntargets: {t: {kind: tune, from: a, steps: '${n}'}}\n"
    (problem,) = project.problems(text, n='"7"')
    assert (problem.title, problem.facts) == ("option `steps` must be a whole number", (("found", "the text `7`"),))


def test_wrong_variables_are_told_where_they_are_used(project: Project) -> None:
    text = (
        "vars: {batch: 3, list: [1], other: 'x${batch}', a-b: 1}\n"
        "targets:\n"
        "  t: {kind: tune, from: a, nodes: ['a ${bach} ${also', '${no name}']}\n"
    )
    assert project.told(text, bath="1") == [
        ("the variable `list` must be one text, number or boolean", "1:24"),
        ("the variable `other` cannot be made of others", "1:36"),
        ("`a-b` cannot be a variable's name", "1:49"),
        ("undefined variable `bach`", "3:39"),
        ("`${also` is no variable", "3:47"),
        ("`${no name}` is no variable", "3:57"),
        ("`--set bath`: no recipe has this variable", ""),
    ]
    hints = {p.title: p.hint for p in project.problems(text, bath="1")}
    assert hints["undefined variable `bach`"] == "did you mean `batch`?"
    assert hints["`--set bath`: no recipe has this variable"] == "did you mean `batch`?"


def test_the_environment_gives_no_variables(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert project.told("targets: {t: {kind: tune, from: '${SECRET}'}}") == [("undefined variable `SECRET`", "1:34")]


# Defaults and extends


def test_extends_merges_option_by_option_and_paths_stay_with_their_file(project: Project) -> None:
    project.write(
        "base/_common.yaml",
        "model: common\nvars: {n: 1, m: 2}\ndefaults: {tune: {rate: 2, steps: 5}}\n"
        "targets:\n  a: {kind: text, path: a.txt}\n  t: {kind: tune, from: a, steps: '${n}', symmetric: true}\n",
    )
    found = project.targets(
        "extends: base/_common.yaml\nvars: {n: 8}\ndefaults: {tune: {rate: 3}}\n"
        "targets:\n  t: {symmetric: false}\n  u: {kind: tune, from: t}\n"
    )
    assert list(found) == ["a", "t", "u"]
    assert found["a"].sources[0].path == project.root / "recipes/base/a.txt"
    t, u = found["t"].spec, found["u"].spec
    assert (t.steps, t.rate, t.symmetric) == (8, 3.0, False)  # type: ignore[attr-defined]
    assert (u.steps, u.rate) == (5, 3.0)  # type: ignore[attr-defined]
    assert str(found["u"].fields["steps"]) == "recipes/base/_common.yaml:3:28"
    assert found["t"].recipe == "r"


def test_later_extended_files_win_and_an_option_replaces_an_axis(project: Project) -> None:
    project.write("_a.yaml", "targets: {t: {kind: tune, from: a, steps: 1, matrix: {rate: [1, 2]}}}\n")
    project.write("_b.yaml", "targets: {t: {steps: 2}}\n")
    text = "extends: [_a.yaml, _b.yaml]\ntargets: {t: {rate: 7}}\n"
    (one,) = project.targets(text).values()
    assert (one.name, one.spec.steps, one.spec.rate) == ("t", 2, 7.0)  # type: ignore[attr-defined]
    found = project.targets("extends: [_a.yaml, _b.yaml]\ntargets: {t: {matrix: {steps: [3, 4]}}}\n")
    assert list(found) == ["t[steps=3]", "t[steps=4]"]


def test_a_target_of_another_kind_replaces_the_extended_one(project: Project) -> None:
    project.write("_a.yaml", "targets: {t: {kind: tune, from: a, steps: 1}}\n")
    assert project.targets("extends: _a.yaml\ntargets: {t: {kind: fail}}\n")["t"].kind == "fail"


def test_extends_that_cannot_be_are_told(project: Project) -> None:
    project.write("_x.yaml", "extends: _y.yaml\n")
    project.write("_y.yaml", "extends: [_x.yaml]\n")
    (problem,) = project.problems("extends: _x.yaml\ntargets: {a: {kind: fail}}\n")
    assert problem.title == "`extends` goes in a circle"
    assert problem.facts == (("files", "recipes/_x.yaml → recipes/_y.yaml → recipes/_x.yaml"),)
    assert project.told("extends: [gone.yaml, ../../x.yaml, 3]\n") == [
        ("`recipes/gone.yaml` does not exist", "1:11"),
        ("`../../x.yaml` is outside the project", "1:22"),
        ("`extends` must be a path or a list of paths", "1:36"),
    ]


def test_a_mistake_in_an_extended_file_is_told_once_for_all_recipes(project: Project) -> None:
    project.write("_c.yaml", "defaults: {tune: {stepps: 1}, tuna: {}}\ntargets: {t: {kind: tune, from: a, rate: x}}\n")
    for name in ("r1.yaml", "r2.yaml"):
        project.write(name, "extends: _c.yaml\n")
    assert [p.title for p in project.read()[1]] == [
        "unknown option `stepps` of kind `tune`",
        "unknown kind `tuna`",
        "option `rate` must be a number",
    ]


def test_a_bad_default_is_told_once_and_spoils_only_its_targets(project: Project) -> None:
    project.write(
        "r.yaml",
        "defaults: {tune: {steps: x}}\n"
        "targets:\n  a: {kind: tune, from: b}\n  c: {kind: tune, from: b}\n  d: {kind: tune, from: b, steps: 1}\n",
    )
    (one,), problems = project.read()
    assert [p.title for p in problems] == ["option `steps` must be a whole number"]
    assert list(one.targets) == ["d"]


# Problems


def test_every_problem_is_told_at_once_and_good_targets_stay(project: Project) -> None:
    project.write(
        "r.yaml",
        "targetz: {}\n"
        "targets:\n"
        "  good: {kind: text, path: x.txt}\n"
        "  a: {kind: tuna, from: b}\n"
        "  b: {kind: tune, form: a, steps: many, rate: true, method: minmx}\n"
        "  c: {from: a}\n"
        "  d:\n"
        "  e: {kind: tune, from: [a, b c, 'x[y]']}\n"
        "  -f: {kind: fail}\n"
        "  GOOD: {kind: fail}\n"
        "  g: {kind: broken}\n",
    )
    (one,), problems = project.read()
    assert [(p.title, f"{p.where.line}:{p.where.column}", p.hint) for p in problems if p.where] == [
        ("unknown key `targetz`", "1:1", "did you mean `targets`?"),
        ("unknown kind `tuna`", "4:13", "did you mean `tune`?"),
        ("target `b` lacks the option `from`", "5:3", None),
        ("unknown option `form` of kind `tune`", "5:19", "did you mean `from`?"),
        ("option `steps` must be a whole number", "5:35", None),
        ("option `rate` must be a number", "5:47", None),
        ("option `method` has no value `minmx`", "5:61", "did you mean `minmax`?"),
        ("target `c` has no `kind`", "6:3", problems[7].hint),
        ("the target `d` must be a map of options, not empty", "7:3", None),
        ("`b c` cannot be the name of a target", "8:29", "write `target`, `recipe:target` or `target[option=value]`"),
        ("`-f` cannot be the name of a target", "9:3", problems[10].hint),
        ("target `GOOD` differs from another in case alone", "10:3", "some file systems cannot tell them apart"),
        ("kind `broken` cannot be loaded", "11:13", None),
    ]
    assert list(one.targets) == ["good"]


@pytest.mark.parametrize(
    ("option", "title", "column"),
    [
        ("steps: 1.5", "option `steps` must be a whole number", 8),
        ("steps: ", "option `steps` must be a whole number", 7),
        ("rate: .inf", "option `rate` holds a number that is not finite", 7),
        ("symmetric: 1", "option `symmetric` must be true or false", 12),
        ("percentile: 101", "option `percentile` must be a number of at most 100", 13),
        ("nodes: a", "option `nodes` must be a list", 8),
        ("nodes: [a, 1]", "option `nodes`: `[1]` must be text", 12),
        ("data: [a]", "option `data` must be text or empty", 7),
        ("profiles: [{batch: [1, x]}]", "option `profiles`: `[0].batch[1]` must be a whole number", 24),
        ("profiles: [{batch: [1], levle: low}]", "option `profiles`: `[0]` has no part `levle`", 25),
        ("profiles: [{level: low}]", "option `profiles`: `[0]` lacks `batch`", 12),
        ("profiles: [{batch: [], level: mid}]", "option `profiles`: `[0].level` has no value `mid`", 31),
        ("require: {a: 1, b: x}", "option `require`: `b` must be a number", 20),
        ("percentile: 99", "`percentile` needs another method", 1),
    ],
)
def test_a_wrong_value_is_told_in_words_at_its_very_place(
    project: Project, option: str, title: str, column: int
) -> None:
    told = project.told(f"targets:\n  t:\n    kind: tune\n    from: a\n    {option}\n")
    assert told == [(title, f"5:{column + 4}")]


@pytest.mark.parametrize("text", ["12345678", "9e12", "9e12345", "true"])
def test_text_that_looks_like_something_else_gets_a_hint(project: Project, text: str) -> None:
    (problem,) = project.problems(f"targets: {{t: {{kind: tune, from: a, nodes: [{text}]}}}}")
    assert problem.hint is not None
    assert "quotes" in problem.hint


def test_a_misfit_of_variants_is_told_once(project: Project) -> None:
    text = "targets: {t: {kind: tune, from: a, percentile: 9, matrix: {steps: [1, 2], method: [minmax, percentile]}}}"
    (problem,) = project.problems(text)
    assert problem.facts == (("variant", "t[steps=1,method=minmax]"),)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("[a]", "a recipe must be a map, not a list"),
        ("targets: [a]", "`targets` must be a map, not a list"),
        ("model: a/b\ntargets: {a: {kind: fail}}", "`a/b` cannot be the name of a model"),
        ("model: {}\ntargets: {a: {kind: fail}}", "`model` must be a name, not a map"),
        ("model: x\n", "the recipe has no `targets`"),
        ("targets:\n", "the recipe has no `targets`"),
        ("targets: {a: }\n", "the target `a` must be a map of options, not empty"),
        ("targets: {..: {kind: fail}}", "`..` cannot be the name of a target"),
        ("targets: {a: {kind: 3}}", "`kind` must be the name of a kind, not `3`"),
        ("targets: {a: {kind: fail, description: 3}}", "`description` must be text"),
        ("targets: {a: {kind: fail}}\ndefault: [a b]", "`a b` cannot be the name of a target"),
    ],
)
def test_a_recipe_of_the_wrong_shape_is_told(project: Project, text: str, title: str) -> None:
    assert [t for t, _ in project.told(text)] == [title]


def test_two_recipes_of_one_name_are_told(project: Project) -> None:
    project.write("a.yaml", "targets: {a: {kind: fail}}\n")
    project.write("b.yaml", "model: A\ntargets: {a: {kind: fail}}\n")
    kept, (problem,) = project.read()
    assert [r.name for r in kept] == ["a"]
    assert problem.title == "two recipes are called `A`"
    assert problem.facts == (("first", "recipes/a.yaml:1:1"),)


def test_a_file_name_that_is_no_model_name_is_told(project: Project) -> None:
    project.write("my model.yaml", "targets: {a: {kind: fail}}\n")
    (problem,) = project.read()[1]
    assert problem.title == "`my model` cannot be the name of a model"
    assert problem.hint == "rename the file, or give a name by `model:`"


# Paths


def test_paths_stay_inside_the_project_unless_the_kind_lets_them_out(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("HOME", str(elsewhere))
    (project.root / "out").symlink_to(elsewhere)
    found = project.targets(
        "targets:\n"
        "  a: {kind: tune, from: x, data: ../data/./x.csv, weights: ~/w}\n"
        f"  b: {{kind: tune, from: x, weights: {elsewhere}/w, package: some/folder}}\n"
    )
    assert [s.path for s in found["a"].sources] == [project.root / "data/x.csv", elsewhere / "w"]
    assert [s.path for s in found["b"].sources] == [elsewhere / "w", Path("some/folder")]
    problems = project.problems(
        "targets:\n"
        "  a: {kind: tune, from: x, data: ../../x}\n"
        f"  b: {{kind: tune, from: x, data: {project.root}/x}}\n"
        "  c: {kind: tune, from: x, data: ../out/x}\n"
        "  d: {kind: tune, from: x, weights: ../../x}\n"
        "  e: {kind: tune, from: x, weights: ~nobody-here/x}\n"
        '  f: {kind: tune, from: x, data: "a\\0b"}\n'
        "  g: {kind: tune, from: x, package: ../x}\n"
    )
    assert [p.title for p in problems] == [
        "option `data`: `../../x` is outside the project",
        "option `data`: the path is absolute",
        "option `data`: `../out/x` is outside the project",
        "option `weights`: `../../x` is outside the project",
        "there is no home folder for `~nobody-here/x`",
        "a path cannot hold a NUL character",
        "`../x` is no folder of a package",
    ]
    assert problems[1].hint == "write `../x`"
    assert ("leads to", f"{elsewhere}/x") in problems[2].facts


# Limits


def test_a_thousand_targets_load_fast(project: Project) -> None:
    lines = [f"  a{i}:\n    kind: tune\n    from: a{i - 1}\n    steps: {i}\n    rate: 1.5\n" for i in range(1, 1001)]
    path = project.write("r.yaml", "targets:\n" + "".join(lines))
    recipe.read(project.root, [path])
    started = time.process_time()
    (one,), problems = recipe.read(project.root, [path])
    spent = time.process_time() - started
    assert (len(one.targets), problems) == (1000, ())
    assert spent < 0.25


@pytest.mark.parametrize(
    "text",
    [
        "targets:\n" + "".join(f"  a{i}: {{kind: knd{i}}}\n" for i in range(20_000)),
        "targets: {a: {kind: tune, " + "".join(f"o{i}: 1, " for i in range(40_000)) + "}}\n",
        "targets:\n" + "".join(f"  a{i}: {{kind: fail, matrix: {{when: {list(range(900))}}}}}\n" for i in range(30)),
        "targets:\n"
        + "".join(f"  a{i}: {{kind: tune, from: b, matrix: {{steps: {list(range(900))}}}}}\n" for i in range(30)),
        f"vars: {{a: {'x' * 400_000}}}\ntargets: {{t: {{kind: tune, from: a, nodes: [{'y${a}, ' * 40_000}]}}}}\n",
        "targets: {" + "x" * 500_000 + ": {kind: fail}}\n",
    ],
    ids=["unknown kinds", "unknown options", "wrong values", "variants", "long variables", "long name"],
)
def test_a_recipe_that_asks_too_much_is_refused_fast(project: Project, text: str) -> None:
    started = time.process_time()
    problems = project.problems(text)
    assert time.process_time() - started < 3
    assert 0 < len(problems) <= 110
    assert all(len(p.title) < 200 for p in problems)


def test_reading_recipes_imports_nothing_heavy() -> None:
    code = (
        "import sys, modelbuild.language.recipe\n"
        "print(*sorted({'difflib', 'rich', 'click', 'doit', 'numpy', 'importlib.metadata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


WORDS = st.sampled_from(
    ["targets", "vars", "defaults", "extends", "default", "model", "kind", "matrix", "tune", "from", "steps", "${n}",
     "n", "a", "b:a", "a[x=1]", "$${", "${", "x.txt", "../x", "-", "", "true", "1", "1.5", ".nan", "é", "/"]
)  # fmt: skip
VALUES = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(WORDS, VALUES, max_size=5), st.dictionaries(WORDS, st.text(max_size=5), max_size=2))
def test_no_recipe_raises(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object], set_: dict[str, str]
) -> None:
    import json

    root = tmp_path_factory.mktemp("p", numbered=True)
    (root / "r.yaml").write_text(json.dumps(top, ensure_ascii=False))
    recipes, problems = recipe.read(root, [root / "r.yaml"], set_)
    assert recipes or problems
