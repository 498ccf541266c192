"""What `doctor` looks at: each finding says what is so and, where it is wrong, what to do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from modelbuild import kind, project, tools
from modelbuild.errors import ProblemError

LOW_DISK_BYTES = 5e9


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing looked at. `remedy` is what to type or do."""

    state: Literal["ok", "note", "wrong"]
    about: str
    found: str
    remedy: str | None = None


def examine(folder: Path) -> Iterator[Finding]:
    """Every finding about this interpreter, its packages, this machine and the project around `folder`."""
    yield Finding("ok", "python", f"{sys.version.split()[0]} in {sys.prefix}")
    yield from _runtimes()
    yield from _kinds()
    yield _gpu()
    try:
        root = project.locate(folder)
    except ProblemError as e:
        yield Finding("note", "project", e.problems[0].title, e.problems[0].hint)
        return
    yield from _recipes(root)
    yield from _disk(root)


def _runtimes() -> Iterator[Finding]:
    for name in tools.FLAVOURS:
        try:
            tools.version(name)
        except ProblemError as e:
            yield Finding("wrong", name, e.problems[0].title, e.problems[0].hint)


def _kinds() -> Iterator[Finding]:
    try:
        names = kind.names()
    except ProblemError as e:
        yield Finding("wrong", "plugins", e.problems[0].title, e.problems[0].hint)
        names = sorted(kind.BUILTIN)
    for name in names:
        try:
            yield _kind(name)
        except ProblemError as e:
            first = e.problems[0]
            yield Finding("wrong", f"kind {name}", first.title, first.hint or dict(first.facts).get("cause"))


def _kind(name: str) -> Finding:
    needs = kind.load(name).TOOLS
    found: dict[str, str | None] = {}
    for tool in needs:
        try:
            found[tool] = tools.version(tool)
        except ProblemError:
            found[tool] = "two of them"
    missing = [tool for tool, version in found.items() if version is None]
    listed = ", ".join(f"{t} {v or 'not installed'}" for t, v in found.items()) or "needs nothing"
    if not missing:
        return Finding("ok", f"kind {name}", listed)
    extras = sorted({needs[t] for t in missing if needs[t]})
    remedy = f"pip install 'modelbuild[{','.join(extras)}]'" if extras else f"pip install {' '.join(missing)}"
    return Finding("note", f"kind {name}", listed, f"{remedy} (where its options need them)")


def _gpu() -> Finding:
    facts = tools.hardware(("gpu", "sm", "driver"))
    if facts["gpu"] is None:
        return Finding("ok", "gpu", "none")
    return Finding("ok", "gpu", f"{facts['gpu']}, compute capability {facts['sm']}, driver {facts['driver']}")


def _recipes(root: Path) -> Iterator[Finding]:
    try:
        opened = project.load(root, {})
    except ProblemError as e:
        count = len(e.problems)
        yield Finding("wrong", "recipes", f"{count} problem{'s' if count > 1 else ''}", "`modelbuild list` shows them")
        return
    yield Finding("ok", "recipes", f"{len(opened.graph.defaults)} with {len(opened.graph.nodes)} targets")
    try:
        opened.store.prepare()
        yield Finding("ok", "store", str(opened.store.root))
    except ProblemError as e:
        yield Finding("wrong", "store", e.problems[0].title, e.problems[0].hint)
    if (root / ".git").exists() and not (root / project.ARTIFACTS / ".gitignore").exists():
        remedy = f"echo '*' > {project.ARTIFACTS}/.gitignore"
        yield Finding("note", "git", f"`{project.ARTIFACTS}/` is not ignored", remedy)


def _disk(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free
    text = f"{free / 1e9:.0f} GB free"
    if free < LOW_DISK_BYTES:
        yield Finding("note", "disk", text, "`modelbuild gc` removes artifacts that no recipe names")
    else:
        yield Finding("ok", "disk", text)
