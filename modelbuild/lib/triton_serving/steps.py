"""The graphs of a model that generates, run a step at a time for several rows, with the key-value cache between steps.

The arrays of a cache are [rows, heads, tokens, size]. Rows of different lengths share a batch of a decoder-only model:
the cache is padded on the left, which its attention mask says. An encoder's decoder has no such mask in its graph, so
its rows stay with those that they began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, Any]
"""By name: numpy arrays, or ONNX Runtime's values where they stay on a GPU between steps."""
AT_ONCE = 2048
"""Tokens of prompts (rows times columns) that go through the graph at once: each has logits of the whole vocabulary."""
LEAST_COLUMNS = 8


class Batch:
    """Rows between two steps: what the decoder takes besides the next tokens."""

    def __init__(self, rows: list[Any], cache: Arrays, mask: NDArray[Any] | None, source: Arrays) -> None:
        """`rows` are the caller's own. `mask` [rows, tokens] is of the cache; `source` is what stays the same."""
        self.rows, self.cache, self.mask, self.source = rows, cache, mask, source

    def keep(self, places: Sequence[int]) -> None:
        """Leave only the rows at these places, and no tokens that are padding to all of them."""
        self.rows = [self.rows[i] for i in places]
        self.source = {name: _here(array)[list(places)] for name, array in self.source.items()}
        first = 0
        if self.mask is not None:
            self.mask = self.mask[list(places)]
            first = int(self.mask.any(axis=0).argmax())
            self.mask = self.mask[:, first:]
        self.cache = {
            name: np.ascontiguousarray(_here(array)[list(places), :, first:]) for name, array in self.cache.items()
        }

    def join(self, other: Batch) -> None:
        """Take in the rows of another batch (of a decoder-only model)."""
        assert self.mask is not None
        assert other.mask is not None
        length = max(self.mask.shape[1], other.mask.shape[1])
        mask = np.concatenate([_lengthened(m, 1, length) for m in (self.mask, other.mask)])
        self.cache = {
            name: np.concatenate([_lengthened(_here(b.cache[name]), 2, length) for b in (self, other)])
            for name in self.cache
        }
        self.rows, self.mask = [*self.rows, *other.rows], mask


def _here(array: Any) -> NDArray[Any]:
    """A numpy array of an array wherever it is."""
    found: NDArray[Any] = array if isinstance(array, np.ndarray) else array.numpy()
    return found


def _lengthened(array: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    missing = [(length - array.shape[axis] if i == axis else 0, 0) for i in range(array.ndim)]
    return np.pad(array, missing)


class Steps:
    """The sessions of a model, and what one step of a batch is.

    `settings` are those of `settings.json`: `graphs` maps `decoder`, and for text to text `encoder`, to the file, to
    the inputs (name to dtype) and to the cache's names (`past` to `present`) and shape (`heads`, `size`, `dtype`).
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], open_session: Any, device: tuple[str, int] | None = None
    ) -> None:
        """`open_session(path)` gives an ONNX Runtime session. What goes from step to step stays on `device`, by ONNX
        Runtime's name and number (`cuda`, 0), but when rows come or go; without one it is numpy arrays."""
        self.settings, self.device = settings, device
        self.graph = settings["graphs"]["decoder"]
        self.decoder = open_session(folder / self.graph["file"])
        self.encoder = None
        if "encoder" in settings["graphs"]:
            self.encoder = open_session(folder / settings["graphs"]["encoder"]["file"])
        self.outputs = ["logits", *(c["present"] for c in self.graph["cache"].values())]

    @property
    def joins(self) -> bool:
        """Whether rows may join a batch that has begun."""
        return self.encoder is None

    def try_out(self) -> None:
        """Run every graph: the first run is the slowest, and one that fails is better known at the start."""
        pad = self.settings["pad_id"]
        batch, _ = self.start([None, None], [[pad], [pad] * 2])
        self.step(batch, [0, 0])

    def start(self, rows: list[Any], texts: Sequence[Sequence[int]]) -> tuple[Batch, NDArray[Any]]:
        """A batch of new rows with the tokens of their texts, and the logits [rows, vocabulary] of the next token."""
        if self.encoder is not None:
            batch = Batch(rows, self._empty(len(rows)), None, self._encoded(texts))
            start = np.full((len(rows), 1), self.settings["start_id"], np.int64)
            return batch, self._run(batch, start, None)
        length = max(len(text) for text in texts)
        tokens, mask = _padded(texts, length, self.settings["pad_id"], left=True)
        batch = Batch(rows, self._empty(len(rows)), mask[:, :0], {})
        columns = max(LEAST_COLUMNS, AT_ONCE // len(rows))
        logits: NDArray[Any] = np.zeros(0)
        for first in range(0, length, columns):
            end = min(first + columns, length)
            logits = self._run(batch, tokens[:, first:end], mask[:, :end])
        return batch, logits

    def step(self, batch: Batch, tokens: Sequence[int]) -> NDArray[Any]:
        """Go on by one token a row; the logits [rows, vocabulary] of the next."""
        mask = batch.mask
        if mask is not None:
            mask = np.concatenate([mask, np.ones((len(mask), 1), mask.dtype)], axis=1)
        return self._run(batch, np.asarray(tokens, np.int64)[:, None], mask)

    def _run(self, batch: Batch, tokens: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any]:
        if self.device is not None:
            batch.source = {name: self._placed(array) for name, array in batch.source.items()}
        given = {"input_ids": tokens, **batch.cache, **batch.source}
        if mask is not None:
            given["attention_mask"] = mask
            given["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :]
        feeds = {name: _as(given[name], dtype) for name, dtype in self.graph["inputs"].items()}
        logits, *present = self._outputs(feeds)
        batch.cache, batch.mask = dict(zip(self.graph["cache"], present, strict=True)), mask
        last: NDArray[Any] = _here(logits)[:, -1]
        return last

    def _outputs(self, feeds: Arrays) -> list[Any]:
        """The decoder's outputs, all but the logits left on the device."""
        if self.device is None:
            return list(self.decoder.run(self.outputs, feeds))
        binding = self.decoder.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self.outputs[1:]:
            binding.bind_output(name, *self.device)
        self.decoder.run_with_iobinding(binding)
        return list(binding.get_outputs())

    def _placed(self, array: Any) -> Any:
        """An array on the device, which needs to be sent there once."""
        if self.device is None or not isinstance(array, np.ndarray):
            return array
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, *self.device)

    def _encoded(self, texts: Sequence[Sequence[int]]) -> Arrays:
        """What the decoder takes of the sources: the keys and values of the cross attention, and their mask."""
        assert self.encoder is not None
        graph = self.settings["graphs"]["encoder"]
        ids, mask = _padded(texts, max(len(text) for text in texts), self.settings["pad_id"], left=False)
        given = {"input_ids": ids, "attention_mask": mask}
        feeds = {name: given[name].astype(dtype, copy=False) for name, dtype in graph["inputs"].items()}
        found = dict(zip(graph["gives"].values(), self.encoder.run(list(graph["gives"]), feeds), strict=True))
        dtype = self.graph["inputs"].get("encoder_attention_mask", "int64")
        return {**found, "encoder_attention_mask": mask.astype(dtype, copy=False)}

    def _empty(self, rows: int) -> Arrays:
        return {
            name: np.zeros((rows, c["heads"], 0, c["size"]), dtype=c["dtype"])
            for name, c in self.graph["cache"].items()
        }


def _as(array: Any, dtype: str) -> Any:
    return array.astype(dtype, copy=False) if isinstance(array, np.ndarray) else array


def _padded(texts: Sequence[Sequence[int]], length: int, pad: int, *, left: bool) -> tuple[Any, Any]:
    """Tokens and mask [texts, length], int64, padded on one side."""
    tokens = np.full((len(texts), length), pad, np.int64)
    mask = np.zeros((len(texts), length), np.int64)
    for i, text in enumerate(texts):
        place = slice(length - len(text), None) if left else slice(0, len(text))
        tokens[i, place], mask[i, place] = text, 1
    return tokens, mask
