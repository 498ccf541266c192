"""A model that goes on from texts, with an answer for every new piece of text: decoupled, by ONNX Runtime in Python."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import wishes
from .generation import Generator, Job
from .graph_model import opener
from .prompts import Prompts
from .said import Said
from .steps import Steps
from .strings import decoded
from .wishes import CANCEL, NAME, STREAM, WRONG

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:  # outside of the server
    pb_utils = None


class StreamModel:
    """Triton's `TritonPythonModel`.

    With the parameter `stream: false` a request gets one answer with all its rows, when the last of them is done.
    """

    folder = Path(__file__).parent.parent

    def initialize(self, args: dict[str, str]) -> None:
        self.read()
        device = ("cuda", int(args["model_instance_device_id"])) if args["model_instance_kind"] == "GPU" else None
        steps = Steps(self.folder, self.settings, opener(args), device)
        steps.try_out()
        self.named: dict[str, Answer] = {}
        self.generator = Generator(steps, self.prompts.rust, self.settings)

    def read(self) -> None:
        """Read the settings and the tokenizer."""
        self.settings = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        self.prompts = Prompts(self.folder, self.settings)

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            parameters = json.loads(request.parameters() or "{}")
            try:
                self._take(request, parameters, sender)
            except ValueError as e:
                cause = f"{WRONG}{e}" if NAME in parameters else str(e)
                error = pb_utils.TritonError(cause, pb_utils.TritonError.INVALID_ARG)
                final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                sender.send(pb_utils.InferenceResponse(error=error), flags=final)

    def _take(self, request: Any, parameters: dict[str, Any], sender: Any) -> None:
        if CANCEL in parameters:
            self._cancel(parameters[CANCEL], sender)
            return
        texts = decoded(pb_utils.get_input_tensor_by_name(request, "text").as_numpy(), "text")
        asked = self.prompts.asked(texts, parameters)
        name = parameters.get(NAME, "")
        streams = wishes.flag(parameters, STREAM, True)
        answer = Answer(sender, Said(asked.prompts), streams, lambda: self.named.pop(name, None))
        if name:
            self.named[name] = answer
        self.generator.submit(Job([p.tokens for p in asked.prompts], asked.mosts, asked.wishes, answer))

    def _cancel(self, name: str, sender: Any) -> None:
        found = self.named.get(name)
        if found is not None:
            found.unwanted = True
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        self.generator.stop()


class Answer:
    """What a request hears (see `generation.Listener`): sent piece by piece, or collected."""

    def __init__(self, sender: Any, said: Said, streams: bool, done: Callable[[], Any]) -> None:
        """`done` is called when the last is sent."""
        self.sender, self.said, self.streams, self.done = sender, said, streams, done
        self.unwanted = False

    def told(self, row: int, text: str, made: int, reason: str) -> None:
        self.said.add(row, text, made, reason)
        if self.streams:
            self._send(_response(self.said.piece(row)))

    def failed(self, cause: str) -> None:
        self.done()
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(cause)))
        self._send(None)

    def gone(self) -> bool:
        return self.unwanted or bool(self.sender.is_cancelled())

    def ended(self) -> None:
        self.done()
        if not self.streams and self.said.done:
            self._send(_response(self.said.columns(range(len(self.said.texts)))))
        self._send(None)

    def _send(self, response: Any) -> None:
        """Send a response, or that there are no more; who cannot be reached is left alone."""
        with contextlib.suppress(pb_utils.TritonModelException):
            if response is None:
                self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self.sender.send(response)


def _response(columns: Mapping[str, Any]) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(n, a) for n, a in columns.items()])
