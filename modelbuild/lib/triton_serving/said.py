"""What was generated for the texts of a request so far, as the columns of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .prompts import Prompt

OUTPUTS = (
    ("generated_text", "string"),
    ("finish_reason", "string"),
    ("generated_tokens", "int32"),
    ("tokens", "int32"),
    ("truncated", "bool"),
)
"""What is answered of each text: name and dtype."""
INDEX = ("index", "int32")
"""What a model that streams adds: the text of the request that a piece is of."""


class Said:
    """The texts, with how many tokens each has and why it ended (empty until it does)."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.texts, self.made, self.reasons = ([""] * len(prompts), [0] * len(prompts), [""] * len(prompts))

    @property
    def done(self) -> bool:
        return all(self.reasons)

    def add(self, row: int, text: str, made: int, reason: str) -> None:
        """A piece more of a row (see `generation.Listener.told`)."""
        self.texts[row] += text
        self.made[row], self.reasons[row] = made, reason

    def piece(self, row: int) -> dict[str, NDArray[Any]]:
        """The columns of one row since the last time."""
        columns = self.columns([row])
        self.texts[row] = ""
        return columns

    def columns(self, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Each of shape (rows, 1); strings as UTF-8."""
        return {
            "generated_text": _strings([self.texts[i] for i in rows]),
            "finish_reason": _strings([self.reasons[i] for i in rows]),
            "generated_tokens": np.array([[self.made[i]] for i in rows], np.int32),
            "tokens": np.array([[len(self.prompts[i].tokens)] for i in rows], np.int32),
            "truncated": np.array([[self.prompts[i].truncated] for i in rows], np.bool_),
            "index": np.array([[i] for i in rows], np.int32),
        }


def _strings(texts: Sequence[str]) -> Any:
    return np.array([[text.encode("utf-8", "replace")] for text in texts], dtype=np.object_)
