"""The top-level sections of a recipe file, with those of the files it `extends` merged in."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from modelbuild.errors import Problem, Span, suggestion
from modelbuild.language import document
from modelbuild.language.node import Entry, Node, brief

KEYS = ("model", "description", "extends", "vars", "defaults", "default", "targets")

LONGEST_CHAIN = 32
"""Files that extend one another in a row."""
MOST_UNKNOWN = 10
"""Unknown keys of one map that are listed one by one."""


class Section(msgspec.Struct, frozen=True):
    """A named map of options (a target, or the defaults of a kind) and the key it stands under."""

    key: Node
    entries: dict[str, Entry]


class Sections(msgspec.Struct, frozen=True):
    """What a recipe says, shape checked, values not.

    `names_targets` is whether any was written, be it wrongly. `whole` is False when an extended file is not readable.
    `files` are the paths of this file and of those it extends.
    """

    where: Span
    model: Node | None = None
    default: Node | None = None
    vars: dict[str, Entry] = {}
    defaults: dict[str, Section] = {}
    targets: dict[str, Section] = {}
    names_targets: bool = False
    whole: bool = True
    files: tuple[str, ...] = ()


class Reader:
    """Reads recipe files, each once, and collects what is wrong with them in `problems`."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.problems: list[Problem] = []
        self._read: dict[str, Sections | None] = {}

    def read(self, path: Path, chain: tuple[str, ...] = ()) -> Sections | None:
        """The sections of a file; None when it is not a map of YAML. `chain` is the files that extend it."""
        real = os.path.realpath(path)
        if real not in self._read:
            self._read[real] = self._load(path, (*chain, real))
        return self._read[real]

    def shown(self, path: Path | str) -> str:
        """What messages call a path: relative to the project where it is inside."""
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
        inside = text.removeprefix(os.fsencode(self.project).decode("utf-8", "backslashreplace") + os.sep)
        return inside.replace(os.sep, "/")

    def _load(self, path: Path, chain: tuple[str, ...]) -> Sections | None:
        root, problems = document.load(path, self.shown(path))
        self.problems += problems
        if root is None:
            return None
        top = root.entries
        if top is None:
            hint = "start with `targets:`"
            self.problems.append(Problem(f"a recipe must be a map, not {kind_of(root)}", root.where, hint=hint))
            return None
        self.problems += unknown_keys(top, KEYS, "unknown key `{}`")
        if "description" in top and not isinstance(top["description"][1].value, str):
            self.problems.append(Problem("`description` must be text", top["description"][1].where))
        own = Sections(
            where=root.file.span(0, 0),
            model=top["model"][1] if "model" in top else None,
            default=top["default"][1] if "default" in top else None,
            vars=self._map(top, "vars"),
            defaults=self._sections(top, "defaults", "the defaults of `{}`"),
            targets=self._sections(top, "targets", "the target `{}`"),
            names_targets="targets" in top and bool(top["targets"][1].value),
            files=(str(path),),
        )
        for base in reversed(self._extended(top, chain)):
            own = _merged(base, own)
        return own

    def _map(self, top: dict[str, Entry], name: str) -> dict[str, Entry]:
        node = top[name][1] if name in top else None
        if node is None or node.value is None:
            return {}
        if node.entries is None:
            self.problems.append(Problem(f"`{name}` must be a map, not {kind_of(node)}", node.where))
        return node.entries or {}

    def _sections(self, top: dict[str, Entry], name: str, title: str) -> dict[str, Section]:
        found = {}
        for key, (key_node, node) in self._map(top, name).items():
            if node.entries is None:
                what = title.format(brief(key))
                place = key_node.where if node.value is None else node.where
                self.problems.append(Problem(f"{what} must be a map of options, not {kind_of(node)}", place))
            else:
                found[key] = Section(key_node, node.entries)
        return found

    def _extended(self, top: dict[str, Entry], chain: tuple[str, ...]) -> list[Sections]:
        if "extends" not in top:
            return []
        node = top["extends"][1]
        nodes = node.value if isinstance(node.value, list) else [node]
        found = [self._extended_file(n, chain) for n in nodes]
        return [s if s is not None else Sections(node.where, whole=False) for s in found]

    def _extended_file(self, node: Node, chain: tuple[str, ...]) -> Sections | None:
        text = node.value
        if not isinstance(text, str) or not text or "\0" in text:
            self.problems.append(Problem("`extends` must be a path or a list of paths", node.where))
            return None
        path = Path(os.path.normpath(node.file.path.parent / text))
        real = os.path.realpath(path)
        if not is_inside(path, self.project):
            hint = "paths are relative to the recipe and stay inside the project"
            self.problems.append(Problem(f"`{brief(text)}` is outside the project", node.where, hint=hint))
            return None
        if real in chain:
            circle = " → ".join(self.shown(p) for p in (*chain[chain.index(real) :], real))
            self.problems.append(Problem("`extends` goes in a circle", node.where, (("files", circle),)))
            return None
        if len(chain) > LONGEST_CHAIN:
            self.problems.append(Problem(f"more than {LONGEST_CHAIN} files extend one another", node.where))
            return None
        if not path.is_file():
            hint = (
                "`extends` is read before variables are known" if "${" in text else "the path is relative to this file"
            )
            what = "is not a file" if path.exists() else "does not exist"
            self.problems.append(Problem(f"`{brief(self.shown(path))}` {what}", node.where, hint=hint))
            return None
        return self.read(path, chain)


def is_inside(path: Path, project: Path) -> bool:
    """Whether a normalised absolute path is in the project, both as written and with its symlinks followed."""
    if not path.is_relative_to(project):
        return False
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(project))


def kind_of(node: Node) -> str:
    """What a node holds, in plain words, to end a title with `not ...`."""
    value = node.value
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    return "text" if isinstance(value, str) else f"`{brief(node.text or '')}`"


def unknown_keys(
    entries: dict[str, Entry], known: Collection[str], title: str, hint: str | None = None
) -> list[Problem]:
    """A problem, with a suggestion, for each key that is not known; `title` has a `{}` for the key."""
    unknown = [(name, key) for name, (key, _) in entries.items() if name not in known]
    facts = (("known", ", ".join(known)),)
    problems = [
        Problem(title.format(brief(name)), key.where, facts, suggestion(name, known) or hint)
        for name, key in unknown[:MOST_UNKNOWN]
    ]
    if len(unknown) > MOST_UNKNOWN:
        where = unknown[MOST_UNKNOWN][1].where
        problems.append(Problem(f"and {len(unknown) - MOST_UNKNOWN} more unknown keys from here", where))
    return problems


def _merged(base: Sections, over: Sections) -> Sections:
    """`over` on top of `base`. The name is the extending file's own."""
    return Sections(
        where=over.where,
        model=over.model,
        default=over.default or base.default,
        vars={**base.vars, **over.vars},
        defaults=_by_name(base.defaults, over.defaults),
        targets=_by_name(base.targets, over.targets),
        names_targets=base.names_targets or over.names_targets,
        whole=base.whole and over.whole,
        files=(*over.files, *base.files),
    )


def _by_name(base: dict[str, Section], over: dict[str, Section]) -> dict[str, Section]:
    merged = dict(base)
    for name, section in over.items():
        merged[name] = _overridden(base[name], section) if name in base else section
    return merged


def _overridden(base: Section, over: Section) -> Section:
    """Option by option. A target of another kind replaces the whole; an option and a matrix axis replace each other."""
    kinds = [section.entries["kind"][1].value for section in (base, over) if "kind" in section.entries]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return over
    entries = {**base.entries, **over.entries}
    own_matrix = over.entries["matrix"][1].entries if "matrix" in over.entries else None
    for axis in own_matrix or ():
        if axis not in over.entries:
            entries.pop(axis, None)
    if "matrix" in base.entries and "matrix" not in over.entries:
        key, matrix = base.entries["matrix"]
        kept = matrix.without(over.entries)
        if matrix.entries and not kept.entries:
            del entries["matrix"]
        elif matrix.entries:
            entries["matrix"] = (key, kept)
    return Section(over.key, entries)
