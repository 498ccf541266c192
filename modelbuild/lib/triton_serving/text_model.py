"""A model that takes text: tokenizes all requests of a batch together, asks the graph's model, answers each request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import COUNTED, TASKS
from .strings import decoded
from .tokens import Tokenizer

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:  # outside of the server
    pb_utils = None


class TextModel:
    """Triton's `TritonPythonModel`: business logic scripting over `<name>_model`, which runs the graph."""

    folder = Path(__file__).parent.parent

    def initialize(self, args: dict[str, str]) -> None:
        self.settings = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        self.task = TASKS[self.settings["task"]]
        self.tokenizer = Tokenizer(self.folder, self.settings)
        self.outputs = [o.name for o in (*self.task.outputs(self.settings), *COUNTED)]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order; a request that cannot be read, or that the graph fails, gets an error."""
        responses: list[Any] = [None] * len(requests)
        columns: list[list[str]] = [[] for _ in self.task.texts]
        places: list[tuple[int, int, int]] = []
        for i, request in enumerate(requests):
            try:
                texts = [decoded(pb_utils.get_input_tensor_by_name(request, n).as_numpy(), n) for n in self.task.texts]
            except ValueError as e:
                responses[i] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e)))
                continue
            first = len(columns[0])
            for column, more in zip(columns, texts, strict=True):
                column += more
            places.append((i, first, len(columns[0])))
        try:
            answered = self.answers(columns) if places else {}
        except pb_utils.TritonModelException as e:
            for i, _, _ in places:
                responses[i] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e)))
            return responses
        for i, first, end in places:
            tensors = [pb_utils.Tensor(name, answered[name][first:end]) for name in self.outputs]
            responses[i] = pb_utils.InferenceResponse(output_tensors=tensors)
        return responses

    def answers(self, columns: list[list[str]]) -> dict[str, NDArray[Any]]:
        """Every output for all texts, first axis the texts. Rows of like length go to the graph together."""
        tokens = self.tokenizer(columns)
        order = np.argsort([len(row.ids) for row in tokens.rows], kind="stable")
        reduced: list[Any] = [None] * len(order)
        most = self.settings["rows"] or len(order)
        for first in range(0, len(order), most):
            chosen = [int(i) for i in order[first : first + most]]
            rows = tokens.take(chosen)
            inputs = self.tokenizer.padded(rows + rows[:1] * self._missing(len(rows)))
            outputs = self._graph(inputs)
            inputs = {name: array[: len(rows)] for name, array in inputs.items()}
            kept = [output[: len(rows)] for output in outputs]
            for place, value in zip(chosen, self.task.reduce(rows, inputs, kept, self.settings), strict=True):
                reduced[place] = value
        answered = self.task.answer(tokens, columns, reduced, self.settings)
        return {**answered, "tokens": tokens.counts[:, None], "truncated": tokens.truncated[:, None]}

    def _missing(self, rows: int) -> int:
        """Rows to add for a graph that takes a fixed number of them."""
        return self.settings["rows"] - rows if self.settings["rows_fixed"] else 0

    def _graph(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph's model in this server; a `TritonModelException` with its error when it fails."""
        request = pb_utils.InferenceRequest(
            model_name=self.settings["model"],
            requested_output_names=self.settings["outputs"],
            inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in self.settings["outputs"]]
