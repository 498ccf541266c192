"""The graph kept between runs, so that recipes are read, checked and linked only when something about them changed.

It is kept in the store as plain data (no code runs by reading it), with the digest of every file it was made from: the
recipes, the files they extend, and the Python files that read them, kinds and plugins included.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from modelbuild import __version__, digest
from modelbuild.graph import Graph
from modelbuild.store import Store

FILE = "graph.msgpack"
READERS = ("modelbuild.language", "modelbuild.kinds", "modelbuild.lib", "modelbuild.kind", "modelbuild.link")
"""Modules whose code decides what a recipe means."""


class Kept(msgspec.Struct, frozen=True):
    """`circumstances` is a digest of what no file shows; `files` maps paths to content digests."""

    circumstances: str
    files: dict[str, str]
    graph: Graph


class Cache:
    """The kept graph of one project, for one set of recipes and settings."""

    def __init__(self, store: Store, root: Path, recipes: Sequence[Path], settings: Mapping[str, str]) -> None:
        self.store = store
        self.path = store.root / FILE
        home = os.environ.get("HOME", "")  # a recipe may name a path below `~`
        facts = [__version__, sys.version, str(root), home, *map(str, recipes), *map(str, sorted(settings.items()))]
        facts += sys.path  # where another version of a plugin may be found
        self.circumstances = digest.of_bytes("\0".join(facts).encode("utf-8", "surrogateescape"))

    def read(self) -> Graph | None:
        """The graph, if everything it was made from is as it was."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        seal, body = data[:32], memoryview(data)[32:]
        if seal.decode("ascii", "replace") != digest.of_bytes(body):
            return None
        try:
            kept = msgspec.msgpack.decode(body, type=Kept)
        except (ValueError, RecursionError):
            return None
        if kept.circumstances != self.circumstances or not all(map(self._stands, kept.files.items())):
            return None
        return kept.graph

    def _stands(self, entry: tuple[str, str]) -> bool:
        path, known = entry
        try:
            return self.store.cache.digest(path) == known
        except (OSError, ValueError):  # a path with a NUL character
            return False

    def write(self, graph: Graph, recipe_files: Collection[str]) -> None:
        """Keep the graph where there is a store to keep it in. That it cannot be kept is no failure."""
        if not self.store.root.is_dir():
            return
        paths = {*recipe_files, *_code(n.kind for n in graph.nodes.values())}
        with contextlib.suppress(OSError, UnicodeError):
            files = {path: self.store.cache.digest(path) for path in sorted(paths)}
            body = msgspec.msgpack.encode(Kept(self.circumstances, files, graph))
            aside = self.path.with_name(f".{FILE}.{os.urandom(4).hex()}")
            aside.write_bytes(digest.of_bytes(body).encode() + body)
            aside.replace(self.path)


def _code(kinds: Iterable[str]) -> Iterator[str]:
    """The Python files that had a say: our readers, and the packages of plugin kinds."""
    from modelbuild import kind

    tops = {kind.load(name).__name__.partition(".")[0] for name in set(kinds)} - {"modelbuild"}
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if file and (name.startswith(READERS) or name.partition(".")[0] in tops):
            yield file
