"""Texts to answers: tokenized together, run in batches of like length by whatever runs the graph, and answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import COUNTED, TASKS
from .tokens import Tokenizer

Graph = Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]]
"""Runs the graph: its inputs by name to the outputs that the settings name, in their order."""


class TextAnswers:
    """A task as the settings (see `triton_text.settings`) and the tokenizer beside them say."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], graph: Graph) -> None:
        self.settings, self.graph = settings, graph
        self.task = TASKS[settings["task"]]
        self.tokenizer = Tokenizer(folder, settings)
        self.fields = (*self.task.outputs(settings), *COUNTED)

    def __call__(self, columns: Sequence[list[str]]) -> dict[str, NDArray[Any]]:
        """Every output for all texts, first axis the texts. Rows of like length go to the graph together."""
        tokens = self.tokenizer(columns)
        order = np.argsort([len(row.ids) for row in tokens.rows], kind="stable")
        reduced: list[Any] = [None] * len(order)
        for chosen in self._parts([len(row.ids) for row in tokens.rows], [int(i) for i in order]):
            rows = tokens.take(chosen)
            inputs = self.tokenizer.padded(rows + rows[:1] * self._missing(len(rows)))
            outputs = self.graph(inputs)
            inputs = {name: array[: len(rows)] for name, array in inputs.items()}
            kept = [output[: len(rows)] for output in outputs]
            for place, value in zip(chosen, self.task.reduce(rows, inputs, kept, self.settings), strict=True):
                reduced[place] = value
        answered = self.task.answer(tokens, list(columns), reduced, self.settings)
        return {**answered, "tokens": tokens.counts[:, None], "truncated": tokens.truncated[:, None]}

    def _parts(self, lengths: Sequence[int], order: Sequence[int]) -> Iterator[list[int]]:
        """The rows, shortest first, in parts that go to the graph together.

        With `most_padding` a part ends where the padding would be more than that share of its tokens: a CPU gains
        less by many rows than it loses by padding.
        """
        most = self.settings["rows"] or len(order)
        padding = self.settings.get("most_padding")
        part: list[int] = []
        tokens = 0
        for i in order:
            padded = lengths[i] * (len(part) + 1)
            if part and (len(part) == most or (padding is not None and padded > (tokens + lengths[i]) * (1 + padding))):
                yield part
                part, tokens = [], 0
            part.append(i)
            tokens += lengths[i]
        if part:
            yield part

    def _missing(self, rows: int) -> int:
        """Rows to add for a graph that takes a fixed number of them."""
        return int(self.settings["rows"]) - rows if self.settings["rows_fixed"] else 0
