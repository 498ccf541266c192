"""What may import what, and what a driver never loads."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from modelbuild.cli import COMMANDS
from modelbuild.kind import BUILTIN
from tests.sandbox import REPOSITORY, Sandbox

EXTRAS = (
    "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers", "tokenizers", "safetensors",
    "huggingface_hub", "polygraphy", "tensorrt", "tensorrt_rtx", "tritonclient", "mlflow", "scipy", "pandas",
)  # fmt: skip
"""Packages of the extras: no driver imports them."""
NOT_WHEN_IDLE = (*EXTRAS, "rich", "doit", "asyncio", "multiprocessing")
"""What a command that has nothing to do does without, too."""
LOADED = """
import json, sys
from modelbuild.cli import main
code = main(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project that is up to date."""
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}")
    sandbox.data("a.txt", "x")
    sandbox.built()
    return sandbox


def loaded(sandbox: Sandbox, *words: str) -> set[str]:
    """The modules that a command had imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        cwd=sandbox.root,
        env=sandbox.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def unwanted(modules: set[str], names: tuple[str, ...]) -> set[str]:
    return {m for m in modules if any(m == n or m.startswith(f"{n}.") for n in names)}


# --- contracts --------------------------------------------------------------------------------------------------


def test_the_contracts_hold() -> None:
    done = subprocess.run(["lint-imports"], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports within functions included: the largest circle is one module."""
    graph = grimp.build_graph("modelbuild", exclude_type_checking_imports=True)

    order = graphlib.TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules})

    order.prepare()


def test_only_tasks_imports_doit() -> None:
    users = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "modelbuild").rglob("*.py")
        if "doit" in imported(path)
    }

    assert users == {"modelbuild/tasks.py"}


def test_no_module_of_the_driver_imports_an_extra_even_within_a_function() -> None:
    drivers = [
        path
        for path in (REPOSITORY / "modelbuild").rglob("*.py")
        if path.relative_to(REPOSITORY / "modelbuild").parts[0] not in ("kinds", "lib")
    ]

    assert drivers
    assert {path.name: found for path in drivers if (found := imported(path) & set(EXTRAS))} == {}


def test_kinds_import_extras_within_functions_only() -> None:
    """The driver imports a kind to read its options."""
    found = {
        path.name: names
        for path in (REPOSITORY / "modelbuild" / "kinds").glob("*.py")
        if (names := imported(path, top_only=True) & set(EXTRAS))
    }

    assert found == {}


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """The top packages that a file imports, those for type checking aside."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


# --- what is loaded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["list"], ["plan"], ["status"], ["report"], ["build"], ["build", "--json"]],
    ids=" ".join,
)
def test_a_command_with_nothing_to_do_loads_nothing_heavy(sandbox: Sandbox, words: list[str]) -> None:
    assert unwanted(loaded(sandbox, *words), NOT_WHEN_IDLE) == set()


def test_reading_recipes_of_the_built_in_kinds_loads_nothing_heavy(sandbox: Sandbox) -> None:
    for verb in ("list", "kinds", "schema"):
        words = [verb, "-C", str(REPOSITORY)] if verb == "list" else [verb]
        assert unwanted(loaded(sandbox, *words), NOT_WHEN_IDLE) == set()


def test_a_build_loads_nothing_heavy_in_the_driver(sandbox: Sandbox, tmp_path: Path) -> None:
    stale = sandbox.copy(tmp_path)
    stale.data("a.txt", "y")

    modules = loaded(stale, "build")

    assert "doit" in modules
    assert unwanted(modules, EXTRAS) == set()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """An environment in which none of the extras can be imported."""
    sandbox = Sandbox(tmp_path_factory.mktemp("bare"))
    for name in EXTRAS:
        text = f"name = {name!r}\nraise ModuleNotFoundError(f'No module named {{name}}', name=name)\n"
        (sandbox.plugins / f"{name}.py").write_text(text)
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")
    return sandbox


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_of_every_verb_needs_no_extra(bare: Sandbox, verb: str) -> None:
    assert bare.run(verb, "--help").code == 0


@pytest.mark.parametrize("kind", BUILTIN)
def test_the_page_of_every_kind_needs_no_extra(bare: Sandbox, kind: str) -> None:
    ran = bare.run("kinds", kind)

    assert ran.code == 0, ran
    assert ran.out.startswith("#")


def test_everything_but_the_kinds_that_need_them_works_without_extras(bare: Sandbox) -> None:
    for words in (["build"], ["status"], ["why", "a"], ["schema"], ["kinds"], ["show", "a"], ["verify"], ["gc"]):
        assert bare.run(*words).code == 0, words


def test_a_kind_whose_import_fails_inside_the_build_says_what_to_install(bare: Sandbox) -> None:
    bare.data("x.onnx", "no model")
    bare.recipe("m: {kind: onnx, path: x.onnx}", name="o")

    ran = bare.run("build", "o")

    assert ran.code in (1, 2)
    assert "is not installed" in ran.err
    assert "pip install 'modelbuild[" in ran.err
