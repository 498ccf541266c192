"""A project: the folder with `recipes/`, the graph of all its targets, and its store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelbuild import graph
from modelbuild.errors import ProblemError, problem
from modelbuild.graph import Graph
from modelbuild.language import recipe
from modelbuild.language.recipe import Recipe
from modelbuild.store import Store

RECIPES = "recipes"
ARTIFACTS = "artifacts"


class Project:
    """The recipes of one folder, read and linked. `root` is absolute."""

    def __init__(self, root: Path, recipes: tuple[Recipe, ...], targets: Graph) -> None:
        self.root, self.recipes, self.graph = root, recipes, targets
        self.store = Store(root / ARTIFACTS)

    def select(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The targets that the patterns mean; a `ProblemError` with every pattern that means none."""
        names, problems = self.graph.select(patterns)
        if problems:
            raise ProblemError(*problems)
        return names

    def one(self, pattern: str) -> str:
        """The single target that a pattern means; a `ProblemError` when it means none or several."""
        names = self.select((pattern,))
        if len(names) != 1:
            listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            raise problem(f"`{pattern}` means {len(names)} targets", hint="name one of them", targets=listed)
        return names[0]


def locate(start: Path) -> Path:
    """The project that `start` is in: the nearest folder, upwards, with a `recipes` folder."""
    start = start.resolve()
    if not start.is_dir():
        raise problem(f"the project folder `{start}` does not exist")
    for folder in (start, *start.parents):
        if (folder / RECIPES).is_dir():
            return folder
    raise problem(
        "this is not inside a modelbuild project",
        looked_for=f"a folder `{RECIPES}` in {start} or above",
        hint="`modelbuild init MODEL` writes a first recipe",
    )


def load(root: Path, settings: Mapping[str, str]) -> Project:
    """The project in `root`, with `settings` overriding its recipes' vars; a `ProblemError` with all problems."""
    paths = recipe.find(root)
    if not paths:
        raise problem(f"`{root / RECIPES}` has no recipe", hint="`modelbuild init MODEL` writes a first one")
    recipes, wrong = recipe.read(root, paths, settings)
    linked, unlinked = graph.link(recipes)
    if wrong or unlinked:
        raise ProblemError(*wrong, *unlinked)
    return Project(root, recipes, linked)
