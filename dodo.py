"""`doit list`, `doit info minilm:int8` and `doit minilm:int8` for this folder's recipes, and the developers' tasks."""

from pathlib import Path

from modelbuild import tasks

DOIT_CONFIG = {
    "default_tasks": ["check"],
    "verbosity": 2,
    "par_type": "thread",
    "backend": "sqlite3",
    "dep_file": ":memory:",  # the store remembers, doit does not
}


def task_targets():
    """Every target of every recipe, as `recipe:target`."""
    yield from tasks.dodo(Path(__file__).parent)


def task_check():
    """Lint, format, types and layers."""
    return {"actions": ["ruff check .", "ruff format --check .", "mypy", "lint-imports"]}


def task_test():
    """The test suite."""
    return {"actions": ["python -m pytest -q"]}
