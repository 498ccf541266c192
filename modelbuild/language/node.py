"""The nodes of a document: values that know where they were written."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Any, TypeAlias

from modelbuild.errors import Span
from modelbuild.language.scalar import Scalar

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What libyaml counts as the end of a line."""


class TextFile:
    """A file's text by lines: `path` is absolute, `shown` is what messages call it."""

    __slots__ = ("lines", "path", "shown", "text")

    def __init__(self, path: Path, shown: str, text: str) -> None:
        self.path, self.shown, self.text = path, shown, text
        self.lines = LINE_BREAK.split(text)

    def span(self, line: int, column: int, width: int = 1) -> Span:
        """The place at `line` and `column`, counted from 0 here and from 1 in the span."""
        text = self.lines[line] if line < len(self.lines) else ""
        return Span(self.shown, line + 1, column + 1, max(width, 1), text)


class Node:
    """A value of the document. `value` is a scalar, a list of nodes, or key -> (key's node, value's node).

    `text` is a scalar as written; keys are always strings, whatever they look like. `size` and `depth` count the
    nodes below with aliases expanded.
    """

    __slots__ = ("column", "depth", "file", "line", "size", "text", "value", "width")

    def __init__(self, file: TextFile, mark: Any, width: int, value: Any, text: str | None = None) -> None:
        self.file, self.line, self.column, self.width = file, mark.line, mark.column, width
        self.value: Scalar | list[Node] | dict[str, Entry] = value
        self.text = text
        self.size = self.depth = 1

    @property
    def where(self) -> Span:
        return self.file.span(self.line, self.column, self.width)

    @property
    def entries(self) -> dict[str, Entry] | None:
        """The entries of a map; None for anything else."""
        return self.value if isinstance(self.value, dict) else None

    def without(self, keys: Container[str]) -> Node:
        """This map, at its place, without some keys."""
        kept = {key: entry for key, entry in (self.entries or {}).items() if key not in keys}
        return Node(self.file, self, self.width, kept)


Entry: TypeAlias = tuple[Node, Node]
"""A key and its value."""


def brief(text: str, limit: int = 60) -> str:
    """A word of the user's for use in a title: not longer than `limit`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
