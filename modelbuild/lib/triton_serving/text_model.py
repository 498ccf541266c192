"""A model that takes text: tokenizes all requests of a batch together, asks the graph's model, answers each request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .strings import decoded
from .text_answers import TextAnswers

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:  # outside of the server
    pb_utils = None


class TextModel:
    """Triton's `TritonPythonModel`: business logic scripting over `<name>_model`, which runs the graph."""

    folder = Path(__file__).parent.parent

    def initialize(self, args: dict[str, str]) -> None:
        self.settings = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        self.answers = TextAnswers(self.folder, self.settings, self._graph)
        self.task = self.answers.task
        self.outputs = [field.name for field in self.answers.fields]

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
