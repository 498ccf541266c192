"""Whatever the arguments, the command line answers 0, 1 or 2 and shows no traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild import cli
from tests import plugin
from tests.sandbox import Sandbox

EXAMPLES = int(os.environ.get("MODELBUILD_FUZZ_EXAMPLES", "150"))
VERBS = [v for v in cli.COMMANDS if v not in ("doctor", "serve", "ask")]
"""Without those that look at the machine or the network."""
WORDS = [
    "--json", "-n", "-k", "-j", "-q", "-C", "--set", "--verify", "--keep-days", "--max-size", "--remove", "--format",
    "--against", "--output",
    "--help", "-h", "--", "-", "a", "b", "r", "r:a", "r:b[x=1]", "*", "r:*", "[", "[!", "]", "?", "=", "a=1", "1", "-1",
    "0", "nan", "inf", "1e999", "20GB", "9" * 30, "0" * 32, "\udcff", "a\udc80b", "\x1b[31m", "\n", "..", "../..",
    "/dev/null", "/proc/self/mem", "a" * 300, "a/b", "~", "{", "%s", "${A}", "none", "dot", "bash", "upper",
]  # fmt: skip
RECIPE = """
    a: {kind: text, path: a.txt}
    b: {kind: upper, from: a, matrix: {salt: ['1', '2']}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A built project to stand in; the plugin's kinds are in this process too."""
    sandbox = Sandbox(tmp_path_factory.mktemp("fuzz"))
    sandbox.recipe(RECIPE)
    sandbox.data("a.txt", "hi")
    sandbox.built()
    with pytest.MonkeyPatch.context() as patch, plugin.installed(sandbox.plugins):
        patch.chdir(sandbox.root)
        patch.setenv("PYTHONPATH", str(sandbox.plugins), prepend=os.pathsep)
        yield sandbox


def answer(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=8)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(verb=st.sampled_from(VERBS) | words, rest=st.lists(words, max_size=4))
def test_no_arguments_end_in_a_traceback(built: Sandbox, verb: str, rest: list[str]) -> None:
    code, out, err = answer([verb, *rest])

    assert code in (0, 1, 2), (out, err)
    assert "Traceback" not in err
    if code == 2 and "--json" in rest:
        assert json.loads(out)["problems"]
    elif code == 2:
        err.encode()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", ["\udcff", "a\n\x1b[31m", "a" * 5000])
def test_a_word_that_is_no_text_is_told_escaped(built: Sandbox, verb: str, word: str) -> None:
    for arguments in ([verb, word], [verb, word, "--json"], [verb, "-C", word, "--json"], [verb, "--set", word]):
        code, out, err = answer(arguments)
        assert code in (0, 1, 2), (arguments, err)
        assert "\x1b" not in out + err


def test_in_a_process_of_its_own_too(built: Sandbox) -> None:
    """Where stdout is a pipe with a strict encoding."""
    ran = built.shell(f"{' '.join(built.command('build'))} --json $'\\xff'; echo $?")
    problems, code = ran.out.splitlines()
    assert (json.loads(problems)["problems"][0]["title"], code) == ("no target matches `\\udcff`", "2")
    assert ran.err == ""


def test_a_project_in_a_folder_that_is_no_utf8_is_told_or_works(built: Sandbox, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)  # noqa: PTH102 - bytes
    here = built.copy(Path(os.fsdecode(odd)))
    here.data("a.txt", "other")
    for arguments in (
        ["status"],
        ["status", "--json"],
        ["show", "a", "--json"],
        ["build"],
        ["build", "--json"],
        ["gc"],
    ):
        ran = here.run(*arguments)
        assert ran.code in (0, 1, 2), (arguments, ran)
        assert "Traceback" not in ran.err
