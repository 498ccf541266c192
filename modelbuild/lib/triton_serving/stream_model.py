"""A model that goes on from texts, with an answer for every new piece of text: decoupled, by ONNX Runtime in Python."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import wishes
from .generation import Generator, Job
from .graph_model import opener
from .prompts import Prompt, Prompts
from .steps import Steps
from .strings import decoded
from .wishes import CANCEL, NAME, STREAM, WRONG, Wishes

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
        # The first run is the slowest, and one that fails is better known now.
        batch, _ = steps.start([None, None], [[self.settings["pad_id"]], [self.settings["pad_id"]] * 2])
        steps.step(batch, [0, 0])
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
        prompts, mosts, wanted = self.understood(texts, parameters)
        name = parameters.get(NAME, "")
        answer = Answer(sender, prompts, wishes.flag(parameters, STREAM, True), lambda: self.named.pop(name, None))
        if name:
            self.named[name] = answer
        self.generator.submit(Job([p.tokens for p in prompts], mosts, wanted, answer))

    def understood(self, texts: list[str], parameters: dict[str, Any]) -> tuple[list[Prompt], list[int], Wishes]:
        """A request's texts as tokens, the most new tokens of each, and its wishes; a `ValueError` if it asks wrong."""
        wanted = wishes.read(parameters, self.settings)
        if not texts:
            raise ValueError("`text` has no rows")
        prompts = self.prompts(texts)
        said = wanted.max_new_tokens if "max_new_tokens" in parameters else None
        usual = wanted.max_new_tokens or self.settings["max_new_tokens"]
        return prompts, [self.prompts.most(i, p, said, usual) for i, p in enumerate(prompts)], wanted

    def _cancel(self, name: str, sender: Any) -> None:
        found = self.named.get(name)
        if found is not None:
            found.unwanted = True
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        self.generator.stop()


class Answer:
    """What a request hears (see `generation.Listener`): sent piece by piece, or collected."""

    def __init__(self, sender: Any, prompts: Sequence[Prompt], streams: bool, done: Callable[[], Any]) -> None:
        """`done` is called when the last is sent."""
        self.sender, self.prompts, self.streams, self.done = sender, prompts, streams, done
        self.texts, self.made, self.reasons = ([""] * len(prompts), [0] * len(prompts), [""] * len(prompts))
        self.unwanted = False

    def told(self, row: int, text: str, made: int, reason: str) -> None:
        self.texts[row] += text
        self.made[row], self.reasons[row] = made, reason
        if self.streams:
            self._send(self._response([row]))
            self.texts[row] = ""

    def failed(self, cause: str) -> None:
        self.done()
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(cause)))
        self._send(None)

    def gone(self) -> bool:
        return self.unwanted or bool(self.sender.is_cancelled())

    def ended(self) -> None:
        self.done()
        if not self.streams and all(self.reasons):
            self._send(self._response(range(len(self.texts))))
        self._send(None)

    def _send(self, response: Any) -> None:
        """Send a response, or that there are no more; who cannot be reached is left alone."""
        with contextlib.suppress(pb_utils.TritonModelException):
            if response is None:
                self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self.sender.send(response)

    def _response(self, rows: Sequence[int]) -> Any:
        columns = {
            "generated_text": _strings([self.texts[i] for i in rows]),
            "finish_reason": _strings([self.reasons[i] for i in rows]),
            "generated_tokens": np.array([[self.made[i]] for i in rows], np.int32),
            "index": np.array([[i] for i in rows], np.int32),
            "tokens": np.array([[len(self.prompts[i].tokens)] for i in rows], np.int32),
            "truncated": np.array([[self.prompts[i].truncated] for i in rows], np.bool_),
        }
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(n, a) for n, a in columns.items()])


def _strings(texts: Sequence[str]) -> Any:
    return np.array([[text.encode("utf-8", "replace")] for text in texts], dtype=np.object_)
