"""Rows of text files (jsonl, csv, txt), one at a time, each failure with its line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from modelbuild.errors import ProblemError, Span, problem, suggestion

Format: TypeAlias = Literal["jsonl", "csv", "txt", "npz"]
SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "txt",
    ".npz": "npz",
}
DEFAULT_COLUMNS = ("text", "sentence")
MAX_NAME = 64
"""A csv header cell longer than this is taken for text: the file has no header."""

Report: TypeAlias = Callable[[float, float], None]


class Row(msgspec.Struct, frozen=True):
    """The texts of the chosen columns, and the label where one is asked for."""

    texts: tuple[str, ...]
    label: Any = None
    words: tuple[str, ...] | None = None
    """The words of the one text, where the column holds a list of them; the text is these with spaces between."""

    @property
    def blank(self) -> bool:
        """Whether any of the texts is empty or white space."""
        return not all(t.strip() for t in self.texts)


class TextFile(msgspec.Struct, frozen=True):
    """A text file and what to take from it. `name` is its path as the recipe has it, for messages."""

    path: Path
    name: str
    format: Format
    columns: tuple[str, ...] = ()
    label: str | None = None

    def rows(self, report: Report | None = None) -> Iterator[Row]:
        """The rows in order, blank ones included; reads as it goes. `report` is told bytes done and in all."""
        records = {"jsonl": self._jsonl, "csv": self._csv, "txt": self._txt}[self.format](report)
        columns: Sequence[str] = self.columns
        for line, record in records:
            columns = columns or self._default(record, line)
            words = self._words(record, columns[0], line) if len(columns) == 1 else None
            if words is not None:
                texts: tuple[str, ...] = (" ".join(words),)
            else:
                texts = tuple(self._text(record, column, line) for column in columns)
            label = None if self.label is None else self._value(record, self.label, line)
            yield Row(texts, label, words)

    def error(self, title: str, line: int, *, text: str = "", hint: str | None = None, **facts: object) -> ProblemError:
        """A problem at a line of the file."""
        return problem(title, where=Span(self.name, line, 1, text=text.rstrip("\r\n")[:200]), hint=hint, **facts)

    def _lines(self, report: Report | None) -> Iterator[tuple[int, str]]:
        """Decoded lines with their line ends; a byte order mark at the start is dropped."""
        size, done = self.path.stat().st_size, 0
        with self.path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                done += len(raw)
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as e:
                    raise self.error(
                        f"`{self.name}` is not UTF-8",
                        number,
                        byte=f"0x{raw[e.start]:02x} at offset {done - len(raw) + e.start}",
                        hint="convert it, for instance with `iconv -f WINDOWS-1252 -t UTF-8`",
                    ) from None
                yield number, text
                if report is not None and number % 1024 == 0:
                    report(done, size)
        if report is not None:
            report(size, size)

    def _txt(self, report: Report | None) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines(report):
            yield number, {"text": line.rstrip("\r\n")}

    def _jsonl(self, report: Report | None) -> Iterator[tuple[int, dict[str, Any]]]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        for number, line in self._lines(report):
            if not line.strip():
                continue
            try:
                yield number, decode(line)
            except msgspec.MsgspecError as e:
                raise self.error(
                    f"a line of `{self.name}` is not a JSON object",
                    number,
                    text=line,
                    cause=e,
                    hint="jsonl has one JSON object per line",
                ) from None

    def _csv(self, report: Report | None) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader((line for _, line in self._lines(report)), strict=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                if header is None:
                    header = self._header(cells)
                elif cells and len(cells) != len(header):
                    raise self.error(
                        f"a row of `{self.name}` has {len(cells)} cells, the header {len(header)}",
                        reader.line_num,
                        hint="quote cells that hold commas",
                    )
                elif cells:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as e:
            raise self.error(f"`{self.name}` is not a readable csv file", reader.line_num, cause=e) from None

    def _header(self, cells: list[str]) -> list[str]:
        names = [c.strip() for c in cells]
        doubtful = [n for n in names if not n or len(n) > MAX_NAME or _is_number(n) or names.count(n) > 1]
        if doubtful:
            raise self.error(
                f"the first row of `{self.name}` is not a header",
                1,
                text=",".join(cells),
                cell=doubtful[0][:80] or "(empty)",
                hint="a csv file starts with its columns' names, each once; use `format: txt` for one text per line",
            )
        return names

    def _default(self, record: Mapping[str, Any], line: int) -> tuple[str, ...]:
        """The column to take where the recipe names none."""
        for name in DEFAULT_COLUMNS:
            if name in record:
                return (name,)
        others = [name for name in record if name != self.label]
        if len(others) == 1:
            return (others[0],)
        raise self.error(
            f"`{self.name}` has several columns",
            line,
            columns=", ".join(record),
            hint="say which to take: `columns: name`, or a list of two for pairs",
        )

    def _value(self, record: Mapping[str, Any], column: str, line: int) -> Any:
        if column not in record:
            raise self.error(
                f"`{self.name}` has no column `{column}`",
                line,
                columns=", ".join(record) or "none",
                hint=suggestion(column, record),
            )
        return record[column]

    def _words(self, record: Mapping[str, Any], column: str, line: int) -> tuple[str, ...] | None:
        value = self._value(record, column, line)
        return tuple(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else None

    def _text(self, record: Mapping[str, Any], column: str, line: int) -> str:
        value = self._value(record, column, line)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"the column `{column}` is not text", line, value=repr(value)[:80])
        return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
