"""Metrics of the user's own: functions of all answers and labels, with the answers on disk until they are asked for."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from modelbuild.errors import problem
from modelbuild.lib import own_code

RETURNS = "it is called `function(outputs, labels)` and returns a number"


class Metrics:
    """The functions that a recipe names, by what their figures are called."""

    def __init__(self, code: Path, named: Mapping[str, str]) -> None:
        """Runs the code; a `ProblemError` for a function that is not there."""
        self.code, self.named = code, named
        self.functions: dict[str, Callable[..., Any]] = {
            name: own_code.load(code, function, "metric") for name, function in named.items()
        }

    def of(self, outputs: Mapping[str, Sequence[Any]], labels: Sequence[Any] | None) -> dict[str, float]:
        """Each function's figure; a `ProblemError` where one fails or gives no finite number."""
        return {name: self._of(name, outputs, labels) for name in self.functions}

    def _of(self, name: str, outputs: Mapping[str, Sequence[Any]], labels: Sequence[Any] | None) -> float:
        called = self.named[name]
        try:
            value = self.functions[name](dict(outputs), labels)
        except Exception as e:  # anybody's code
            raise own_code.failed(f"the metric `{called}` failed", self.code, e) from e
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise problem(f"the metric `{called}` returned no number", got=type(value).__name__, hint=RETURNS)
        if not np.isfinite(float(value)):
            raise problem(f"the metric `{called}` is not finite", got=float(value), figure=name)
        return float(value)


class Kept:
    """The answers of one model, in files: memory does not grow with them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._places: dict[str, list[tuple[int, tuple[int, ...], np.dtype[Any]]]] = {}
        self._texts: dict[str, list[str]] = {}

    def add(self, outputs: Mapping[str, NDArray[Any] | str]) -> None:
        """The answers to one more sample, by the outputs' names."""
        for name, values in outputs.items():
            if isinstance(values, str):
                self._texts.setdefault(name, []).append(values)
                continue
            if name not in self._files:
                self._files[name] = (self.folder / f"{len(self._files)}.bin").open("wb")
            file = self._files[name]
            self._places.setdefault(name, []).append((file.tell(), values.shape, values.dtype))
            file.write(np.ascontiguousarray(values).tobytes())

    def outputs(self) -> dict[str, Sequence[Any]]:
        """Output name -> an answer for each sample: a text, or a mapped array without padding."""
        found: dict[str, Sequence[Any]] = dict(self._texts)
        for name, file in self._files.items():
            file.close()
            size = Path(file.name).stat().st_size
            raw = np.memmap(file.name, dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8)
            found[name] = [_array(raw, *place) for place in self._places[name]]
        return found


def _array(raw: NDArray[np.uint8], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = int(np.prod(shape)) * dtype.itemsize
    return raw[start : start + size].view(dtype).reshape(shape)
