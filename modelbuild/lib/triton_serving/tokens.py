"""Texts to token ids: truncated, padded together, and cut into windows where a task asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FILE = "tokenizer.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""The graph inputs that can be made of a text."""


class Tokens(NamedTuple):
    """Texts as tokens: one encoding a row of the graph's input, and the text (its index) that each row is of.

    `truncated[i]` and `counts[i]` are of text i: whether something was cut, and how many tokens the model sees of it.
    """

    rows: list[Any]
    of: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    counts: NDArray[np.int32]

    def take(self, rows: Sequence[int]) -> list[Any]:
        return [self.rows[i] for i in rows]


class Tokenizer:
    """The tokenizer beside the settings; the settings say the length limit, the padding and the buckets."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Reads `tokenizer.json` in `folder`. `settings` are those of `settings.json` (see `triton_text.settings`)."""
        from tokenizers import Tokenizer as Rust

        self.rust = Rust.from_file(str(folder / FILE))
        self.rust.no_padding()
        self.rust.no_truncation()
        self.settings = settings
        self.stride = settings.get("stride")
        if self.stride is not None:
            self.plain = Rust.from_file(str(folder / FILE))
            self.plain.no_padding()
            self.rust.enable_truncation(settings["max_length"], stride=self.stride, strategy="only_second")
        elif settings["max_length"] is not None:
            self.rust.enable_truncation(settings["max_length"], strategy="longest_first")

    def __call__(self, columns: Sequence[Sequence[str]]) -> Tokens:
        """Encode one or two columns of texts, all together.

        With a `stride` (pairs only) what does not fit of the second text becomes further rows, which overlap by so
        many tokens, and only a first text that leaves it no room is cut. Without, what does not fit is cut.
        """
        if self.settings.get("lowercase"):
            columns = [[text.lower() for text in column] for column in columns]
        shortened = [False] * len(columns[0])
        if self.stride is not None:
            questions, shortened = self._shortened(columns[0])
            columns = [questions, *columns[1:]]
        encoded = self.rust.encode_batch(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))
        rows, of = [], []
        for i, first in enumerate(encoded):
            windows = [first, *first.overflowing] if self.stride is not None else [first]
            rows += windows
            of += [i] * len(windows)
        cut = shortened if self.stride is not None else [bool(e.overflowing) for e in encoded]
        counts = np.zeros(len(encoded), np.int32)
        np.add.at(counts, of, [len(row.ids) for row in rows])
        return Tokens(rows, np.asarray(of, np.int64), np.asarray(cut, np.bool_), counts)

    def _shortened(self, texts: Sequence[str]) -> tuple[list[str], list[bool]]:
        """The texts cut so that windows of the other text still move on, and which were cut."""
        room = self.settings["max_length"] - self.rust.num_special_tokens_to_add(True) - self.stride - 2
        self.plain.enable_truncation(max(room, 1))
        encoded = self.plain.encode_batch(list(texts), add_special_tokens=False)
        cut = [bool(e.overflowing) for e in encoded]
        ends = [e.offsets[-1][1] if e.offsets else 0 for e in encoded]
        return [t[:end] if c else t for t, end, c in zip(texts, ends, cut, strict=True)], cut

    def length(self, longest: int) -> int:
        """Tokens that a batch is padded to: the graph's fixed length, else the least bucket that fits, else the longest
        text's; never less than a plan takes."""
        fixed, buckets = self.settings.get("length"), self.settings.get("buckets") or ()
        if fixed is not None:
            return int(fixed)
        longest = max(longest, int(self.settings.get("least", 1)))
        return next((int(b) for b in buckets if b >= longest), longest)

    def padded(self, rows: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """The graph's inputs, each of shape (rows, tokens) and of the graph's dtype; real tokens have mask 1."""
        length, left = self.length(max(len(row.ids) for row in rows)), self.settings["pad_left"]
        filler = {"input_ids": self.settings["pad_id"], "token_type_ids": self.settings["pad_type_id"]}
        made = {name: np.full((len(rows), length), filler.get(name, 0), np.int64) for name in INPUTS}
        for i, row in enumerate(rows):
            place = slice(length - len(row.ids), None) if left else slice(0, len(row.ids))
            made["input_ids"][i, place] = row.ids
            made["token_type_ids"][i, place] = row.type_ids
            made["attention_mask"][i, place] = 1
        made["position_ids"] = np.maximum(made["attention_mask"].cumsum(axis=1) - 1, 0)
        return {name: made[name].astype(dtype, copy=False) for name, dtype in self.settings["inputs"].items()}
