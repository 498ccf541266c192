"""A project: the folder with `recipes/`, the graph of all its targets, and its store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from modelbuild import compiled
from modelbuild.errors import ProblemError, problem
from modelbuild.graph import Graph
from modelbuild.store import Store

RECIPES = "recipes"
ARTIFACTS = "artifacts"
SUFFIXES = (".yaml", ".yml")


class Project:
    """The targets of one folder's recipes, and its store. `root` is absolute."""

    def __init__(self, root: Path, targets: Graph, store: Store) -> None:
        self.root, self.graph, self.store = root, targets, store

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
    """The project in `root`, with `settings` overriding its recipes' vars; a `ProblemError` with all problems.

    Recipes are read again only when they, or what reads them, changed.
    """
    paths = find(root)
    if not paths:
        raise problem(f"`{root / RECIPES}` has no recipe", hint="`modelbuild init MODEL` writes a first one")
    store = Store(root / ARTIFACTS)
    kept = compiled.Cache(store, root, paths, settings)
    graph = kept.read()
    if graph is None:
        from modelbuild import link
        from modelbuild.language import recipe

        recipes, wrong = recipe.read(root, paths, settings)
        graph, unlinked = link.link(recipes)
        if wrong or unlinked:
            raise ProblemError(*wrong, *unlinked)
        kept.write(graph, {file for r in recipes for file in r.files})
    return Project(root, graph, store)


def find(project: Path) -> tuple[Path, ...]:
    """The recipe files below `recipes/`, sorted; names that start with `_` or `.` are for other files to extend."""
    found = []
    for folder, folders, files in os.walk(project / RECIPES):
        folders[:] = [name for name in folders if name[0] not in "_."]
        found += [Path(folder, name) for name in files if name.endswith(SUFFIXES) and name[0] not in "_."]
    return tuple(sorted(found))
