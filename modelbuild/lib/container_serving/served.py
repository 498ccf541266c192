"""The models that a context serves: a graph that takes tensors, and texts that are answered by one."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..triton_serving.strings import decoded
from ..triton_serving.text_answers import TextAnswers
from . import generating
from .generating import GeneratingModel
from .protocol import DATATYPES, DTYPES, STRINGS, Arrays, RefusalError, Tensor
from .sessions import Sessions
from .settings import Settings

SAMPLE = "a sample text"


class GraphModel:
    """One ONNX graph in ONNX Runtime. Requests share a batch where the graph has one and their other sizes agree."""

    platform = "onnxruntime_onnx"

    def __init__(self, folder: Path, told: Mapping[str, Any], device: str, threads: int, cores: int) -> None:
        self.name = str(told["name"])
        self.inputs = [_tensor(t) for t in told["inputs"]]
        self.outputs = [_tensor(t) for t in told["outputs"]]
        self.batched = bool(told["batched"])
        self.symbols = [
            (t["name"], axis, size)
            for t in told["inputs"]
            for axis, size in enumerate(t["shape"])
            if isinstance(size, str)
        ]
        self.sessions = Sessions(folder / told["file"], device, threads, cores)

    def like(self, inputs: Arrays) -> Hashable:
        """What must be equal for requests to share a batch."""
        return tuple(inputs[t.name].shape[1:] for t in self.inputs)

    def rows(self, inputs: Arrays) -> int:
        """The rows of a request, whose dimensions of one name are checked to be of one size."""
        sizes: dict[str, int] = {}
        for name, axis, symbol in self.symbols:
            size = inputs[name].shape[axis]
            if sizes.setdefault(symbol, size) != size:
                raise RefusalError(f"`{symbol}` is {sizes[symbol]} in one input and {size} in `{name}`")
        return len(inputs[self.inputs[0].name]) if self.batched else 1

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        if not self.batched:
            return [self._ran(inputs) for inputs in requests]
        together = {t.name: np.concatenate([r[t.name] for r in requests]) for t in self.inputs}
        answered = self._ran(together if len(requests) > 1 else requests[0])
        ends = np.cumsum([self.rows(r) for r in requests])
        return [
            {name: array[end - self.rows(r) : end] for name, array in answered.items()}
            for r, end in zip(requests, ends, strict=True)
        ]

    def _ran(self, inputs: Arrays) -> Arrays:
        names = [t.name for t in self.outputs]
        fed = {t.name: _of_text(inputs[t.name]) if t.datatype == STRINGS else inputs[t.name] for t in self.inputs}
        return dict(zip(names, self.sessions.run(names, fed), strict=True))

    def sample(self) -> Arrays:
        """A request of ones, free sizes 1."""
        shapes = {t: [n if n > 0 else 1 for n in t.shape] for t in self.inputs}
        return {
            t.name: np.full(s, SAMPLE, object) if t.datatype == STRINGS else np.ones(s, DTYPES[t.datatype])
            for t, s in shapes.items()
        }


class TextModel:
    """A task's texts, answered through a graph (see `text_answers`); texts of any lengths share a batch."""

    platform = "modelserver_text"

    def __init__(self, folder: Path, told: Mapping[str, Any], graph: GraphModel) -> None:
        self.name = str(told["name"])
        settings = json.loads((folder / told["folder"] / "settings.json").read_text(encoding="utf-8"))
        outputs, run = settings["outputs"], graph.sessions.run
        self.answers = TextAnswers(folder / told["folder"], settings, lambda inputs: run(outputs, inputs))
        self.inputs = [Tensor(name, STRINGS, (-1, 1)) for name in self.answers.task.texts]
        self.outputs = [Tensor(f.name, DATATYPES[f.dtype], (-1, *f.shape)) for f in self.answers.fields]

    def like(self, inputs: Arrays) -> Hashable:
        return None

    def rows(self, inputs: Arrays) -> int:
        """The texts of a request, which are checked to be texts and equally many."""
        counts = {len(array) for array in inputs.values()}
        if len(counts) > 1:
            raise RefusalError(f"the inputs have different numbers of texts: {', '.join(map(str, sorted(counts)))}")
        for name, array in inputs.items():
            try:
                inputs[name] = np.array(decoded(array, name), object)
            except ValueError as e:
                raise RefusalError(str(e)) from None
        return counts.pop()

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        columns = [[text for r in requests for text in r[t.name]] for t in self.inputs]
        answered = self.answers(columns)
        ends = np.cumsum([len(r[self.inputs[0].name]) for r in requests])
        return [
            {name: array[end - len(r[self.inputs[0].name]) : end] for name, array in answered.items()}
            for r, end in zip(requests, ends, strict=True)
        ]

    def sample(self) -> Arrays:
        return {t.name: np.array([[SAMPLE]], object) for t in self.inputs}


Model = GraphModel | TextModel | GeneratingModel


def load(folder: Path, told: Mapping[str, Any], settings: Settings, cores: int) -> dict[str, Model]:
    """The models that `server.json` tells of, by name; those that take texts were run once."""
    graphs = {g["name"]: GraphModel(folder, g, told["device"], settings.threads, cores) for g in told["graphs"]}
    texts = {t["name"]: TextModel(folder, t, graphs[t["graph"]]) for t in told["texts"]}
    for text in texts.values():
        inputs = text.sample()
        text.rows(inputs)
        text.run([inputs])
    found: dict[str, Model] = {**texts, **graphs}
    for entry in told["generators"]:
        threads = settings.threads or cores
        found |= generating.load(folder, entry, told["device"], threads, settings.max_batch_size)
    return found


def _tensor(told: Mapping[str, Any]) -> Tensor:
    return Tensor(told["name"], DATATYPES[told["dtype"]], tuple(n if isinstance(n, int) else -1 for n in told["shape"]))


def _of_text(array: Any) -> Any:
    try:
        return np.array([v.decode() if isinstance(v, bytes) else v for v in array.ravel()], object).reshape(array.shape)
    except UnicodeDecodeError as e:
        raise RefusalError(f"a string is not UTF-8: {e.reason} at byte {e.start}") from None
