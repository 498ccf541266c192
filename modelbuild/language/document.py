"""YAML text to a tree of nodes that know where they were written.

Stricter than YAML where leniency hides a mistake: one document, plain keys, no duplicate key, no merge key, no tag but
those of the core schema. Bounded, so that no file can cost more than a moment (`LARGEST_FILE`, `MOST_NODES`,
`DEEPEST`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from modelbuild.errors import Problem, ProblemError, Span, problem
from modelbuild.language.node import LINE_BREAK, Node, TextFile, brief
from modelbuild.language.scalar import Scalar, resolve

LARGEST_FILE = 1 << 20
"""Bytes."""
MOST_NODES = 100_000
"""Nodes, with every alias counted as the nodes it stands for."""
DEEPEST = 64
"""Levels of nesting, aliases included."""
MOST_PROBLEMS = 100
"""Of one file, before the rest of it is not looked at."""

_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS: dict[str, Callable[[Scalar], bool]] = {
    f"{_TAG}int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    f"{_TAG}float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    f"{_TAG}bool": lambda v: isinstance(v, bool),
    f"{_TAG}null": lambda v: v is None,
}


def load(path: Path, shown: str) -> tuple[Node | None, list[Problem]]:
    """The document in a file (None when it cannot be read at all), and every problem found. Never raises."""
    try:
        if not path.is_file():
            missing = not path.exists()
            return None, [Problem(f"`{shown}` " + ("does not exist" if missing else "is not a file"))]
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as e:
        return None, [Problem(f"cannot read `{shown}`", facts=(("cause", (e.strerror or str(e)).lower()),))]
    return parse(content, path, shown)


def parse(content: bytes, path: Path, shown: str) -> tuple[Node | None, list[Problem]]:
    """The document in `content` (None when it is not YAML), and every problem found. Never raises."""
    problems: list[Problem] = []
    try:
        file = _decode(content, path, shown)
        return _Composer(file, problems).compose(), problems
    except ProblemError as e:
        return None, [*problems, *e.problems]


def _decode(content: bytes, path: Path, shown: str) -> TextFile:
    if len(content) > LARGEST_FILE:
        raise problem(
            "the recipe is too large",
            where=Span(shown, 1, 1),
            limit=f"{LARGEST_FILE >> 20} MiB",
            hint="data belongs in a file of its own, which a target names",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = LINE_BREAK.split(content[: e.start].decode("utf-8-sig", "replace"))
        after = content[e.start : e.start + 80].decode("utf-8", "replace").split("\n")[0]
        where = Span(shown, len(before), len(before[-1]) + 1, 1, before[-1] + after)
        raise problem(
            "the file is not UTF-8",
            where=where,
            offset=f"byte {e.start}",
            found=f"0x{content[e.start]:02x}",
            hint="save it as UTF-8",
        ) from None
    file = TextFile(path, shown, text)
    if found := _FORBIDDEN.search(text):
        before = LINE_BREAK.split(text[: found.start()])
        title = f"the character U+{ord(found[0]):04X} is not allowed in YAML"
        raise problem(title, where=file.span(len(before) - 1, len(before[-1])))
    file_is_empty = not text.strip()
    if file_is_empty:
        raise problem("the file is empty", where=file.span(0, 0))
    return file


class _Open:
    """A map or list whose end has not come yet."""

    __slots__ = ("anchor", "key", "node", "skip")

    def __init__(self, node: Node, anchor: str | None) -> None:
        self.node, self.anchor = node, anchor
        self.key: Node | None = None
        self.skip = False


class _Composer:
    """Builds the tree from the parser's events. Works on events so that nothing is expanded before it is counted."""

    def __init__(self, file: TextFile, problems: list[Problem]) -> None:
        self.file, self.problems = file, problems
        self.open: list[_Open] = []
        self.anchors: dict[str, Node | None] = {}
        self.root: Node | None = None

    def compose(self) -> Node:
        loader = getattr(yaml, "CLoader", yaml.Loader)
        try:
            self._read(yaml.parse(self.file.text, Loader=loader))
        except yaml.YAMLError as e:
            raise ProblemError(_syntax_problem(e, self.file)) from None
        if self.root is None:
            raise problem("the file is empty", where=self.file.span(0, 0))
        return self.root

    def _read(self, events: Iterable[Any]) -> None:
        documents = 0
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                node = self._scalar(event)
                if event.anchor is not None:
                    self.anchors[event.anchor] = node
                self._attach(node, event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._start(event, is_map=kind is yaml.MappingStartEvent)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                closed = self.open.pop()
                if closed.anchor is not None:
                    self.anchors[closed.anchor] = closed.node
                self._attach(closed.node, event)
            elif kind is yaml.AliasEvent:
                self._attach(self._alias(event), event)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    mark = event.start_mark
                    where = self.file.span(mark.line, mark.column, 3)
                    raise problem("a second document starts here", where=where, hint="write one recipe per file")

    def _report(self, found: Problem) -> None:
        self.problems.append(found)
        if len(self.problems) >= MOST_PROBLEMS:
            raise problem("too many problems: the rest of the file was not read", where=found.where)

    def _start(self, event: Any, *, is_map: bool) -> None:
        mark = event.start_mark
        node = Node(self.file, mark, 1, {} if is_map else [])
        if len(self.open) >= DEEPEST:
            raise problem(f"the file holds more than {DEEPEST} levels", where=node.where)
        if event.tag not in (None, "!", _TAG + ("map" if is_map else "seq")):
            self._report(_tag_problem(event.tag, node.where))
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self.open.append(_Open(node, event.anchor))

    def _scalar(self, event: Any) -> Node:
        mark, end, text = event.start_mark, event.end_mark, event.value
        width = end.column - mark.column if end.line == mark.line else len(self.file.lines[mark.line]) - mark.column
        node = Node(self.file, mark, width, text, text)
        if event.tag is not None:
            self._explicit(node, event.tag)
        elif event.implicit[0]:
            try:
                node.value = resolve(text)
            except ValueError as e:
                self._report(Problem(str(e), node.where, hint="put quotes around text that looks like a number"))
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise problem("half of a surrogate pair is not a character", where=node.where)
        return node

    def _explicit(self, node: Node, tag: str) -> None:
        if tag in ("!", f"{_TAG}str"):
            return
        fits = _SCALAR_TAGS.get(tag)
        if fits is None:
            self._report(_tag_problem(tag, node.where))
            return
        try:
            value = resolve(node.text or "")
        except ValueError as e:
            self._report(Problem(str(e), node.where, hint="put quotes around text that looks like a number"))
            return
        if not fits(value):
            self._report(Problem(f"the value is no `!!{tag.removeprefix(_TAG)}`", node.where))
        node.value = float(value) if tag == f"{_TAG}float" and isinstance(value, int) else value

    def _alias(self, event: Any) -> Node:
        mark, name = event.start_mark, event.anchor
        where = self.file.span(mark.line, mark.column, event.end_mark.column - mark.column)
        if name not in self.anchors:
            raise problem(f"`*{name}` has no anchor `&{name}` before it", where=where)
        node = self.anchors[name]
        if node is None:
            raise problem(f"`*{name}` contains itself", where=where)
        return node

    def _attach(self, node: Node, event: Any) -> None:
        """Put a finished node into what is open around it."""
        if not self.open:
            self.root = node
            return
        around = self.open[-1]
        parent = around.node
        parent.size += node.size
        parent.depth = max(parent.depth, node.depth + 1)
        if parent.size > MOST_NODES or parent.depth + len(self.open) - 1 > DEEPEST:
            what = f"more than {MOST_NODES} values" if parent.size > MOST_NODES else f"more than {DEEPEST} levels"
            mark = event.start_mark
            hint = "what an alias stands for counts each time"
            raise problem(f"the file holds {what}", where=self.file.span(mark.line, mark.column), hint=hint)
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif around.key is None:
            around.key, around.skip = node, not self._usable_key(node, event, parent)
        else:
            if not around.skip and isinstance(parent.value, dict):
                parent.value[str(around.key.text)] = (around.key, node)
            around.key = None

    def _usable_key(self, node: Node, event: Any, parent: Node) -> bool:
        if node.text is None:
            self._report(Problem("a key must be a word", node.where))
            return False
        if node.text == "<<" and type(event) is yaml.ScalarEvent and event.implicit[0]:
            hint = "use `defaults:` or `extends:`, or repeat the options"
            self._report(Problem("merge keys (`<<`) are not part of YAML 1.2", node.where, hint=hint))
            return False
        entries = parent.entries or {}
        if node.text in entries:
            first = str(entries[node.text][0].where)
            self._report(Problem(f"duplicate key `{brief(node.text)}`", node.where, (("first", first),)))
            return False
        return True


def _tag_problem(tag: str, where: Span) -> Problem:
    shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return Problem(
        f"the tag `{brief(shown)}` is not allowed here", where, hint="a recipe is plain data: remove the tag"
    )


def _syntax_problem(error: yaml.YAMLError, file: TextFile) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    cause = str(getattr(error, "problem", None) or error).splitlines()[0].strip()
    facts = [("cause", cause)]
    context, context_mark = getattr(error, "context", None), getattr(error, "context_mark", None)
    if context and context_mark:
        facts.append(("context", f"{context}, {file.shown}:{context_mark.line + 1}:{context_mark.column + 1}"))
    if mark is None:
        return Problem("the file is not valid YAML", file.span(0, 0), tuple(facts))
    line = min(mark.line, len(file.lines) - 1)
    where = file.span(line, mark.column if line == mark.line else len(file.lines[line]))
    return Problem("the file is not valid YAML", where, tuple(facts), _syntax_hint(cause, file.lines[line]))


def _syntax_hint(cause: str, line: str) -> str | None:
    if "cannot start any token" in cause and "\t" in line:
        return "indent with spaces: YAML does not take tabs"
    if "mapping values are not allowed" in cause:
        return "put quotes around a value that contains `: `, and check the indentation"
    if "flow" in cause or "',' or" in cause:
        if re.search(r"\w\[\w+=", line):
            return 'put quotes around a reference with brackets: "int8[calibrate=minmax]"'
        return "check that every `[` and `{` is closed"
    if "cannot start any token" in cause:
        return "put quotes around a value that starts with a special character"
    return None
