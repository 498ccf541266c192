"""The text of problems, as users see it: golden files in `tests/golden/errors/`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import Problem, Span
from modelbuild.language import recipe
from modelbuild.report.errors import WIDEST, excerpt, render, safe
from tests import golden, plugin
from tests.test_recipe import TUNE

GOLDEN = Path(__file__).parent / "golden" / "errors"

RECIPES = {
    "many-mistakes": """\
model: minilm
targetz: {}
vars: {samples: 300}
targets:
  texts:
    kind: text
    path: ../../secrets.txt
  tuned:
    kind: tune
    from: texts
    methd: percentile
    steps: 1e3
    symmetric: yes
    profiles:
      - batch: [1, 8, many]
  twice: {kind: upper, from: texts, from: tuned}
  small: {kind: tuna, from: texts}
  upper: {kind: upper, from: tuned, salt: "${sample}"}
""",
    "many-alike": "targets:\n" + "".join(f"  a{i}: {{kind: tuna}}\n" for i in range(9)),
    "syntax": "targets:\n  a: {kind: join, from: [text[sep=x]]}\n",
    "tabs": "targets:\n\ta: {kind: text}\n",
    "bomb": "a: &a [x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 40)}]\n" for i in range(5)),
}

SPANS = {
    "wide-and-tabs": Span("recipes/日本.yaml", 3, 10, 4, "\tname: 模型 oops"),
    "long-line": Span("r.yaml", 120, 300, 6, "x: [" + "aaaa, " * 49 + " wrong_ , " + "bbbb, " * 50),
    "end-of-line": Span("r.yaml", 9, 8, 1, "targets"),
    "hostile": Span("r\x1b[2J.yaml", 1, 4, 6, "a: \x1b[31m\u202etxt.exe\x07"),
}


def check(name: str, text: str) -> None:
    golden.check(GOLDEN / f"{name}.txt", text)


@pytest.mark.parametrize("name", RECIPES)
def test_problems_of_a_recipe(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "minilm.yaml"
    path.write_text(RECIPES[name])
    with plugin.installed(tmp_path / "site", {"tune": TUNE}):
        _, problems = recipe.read(tmp_path, [path])
    # the kinds that happen to be installed are not this test's matter
    shown = [msg for msg in render(problems, color=False).splitlines() if not msg.startswith("  kinds:")]
    check(name, "\n".join(shown) + "\n")


@pytest.mark.parametrize("name", SPANS)
def test_source_lines(name: str) -> None:
    p = Problem("the name is `\x1b]0;x\x07`", SPANS[name], (("known", "a, b"), ("the long label", "1\n2")), "a hint")
    check(name, render([p], color=False))


def test_color_is_around_the_words_and_nothing_else_changes() -> None:
    problem = Problem("title", SPANS["wide-and-tabs"], (("known", "a"),), "hint")
    colored = render([problem], color=True)
    check("color", colored.replace("\x1b", "ESC"))
    assert safe("") == ""


def test_nothing_to_tell_is_no_text() -> None:
    assert render([], color=True) == ""


PRINTABLE = st.text(max_size=300)
NUMBER = st.integers(1, 400)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(PRINTABLE, PRINTABLE, NUMBER, NUMBER)
def test_any_problem_is_printable_and_fits(title: str, line: str, column: int, width: int) -> None:
    where = Span(title, column, column, width, line)
    text = render([Problem(title, where, ((title, line),), title)], color=False)
    text.encode()
    assert "\x1b" not in text
    assert "\r" not in text
    shown, offset, caret = excerpt(where)
    assert caret >= 1
    assert len(shown) <= 2 * WIDEST + 2 or "…" not in shown
    assert offset >= 0
