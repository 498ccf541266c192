"""A model that goes on from texts and answers once: asks the decoupled model that streams, and gives all it said."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .wishes import CANCEL, NAME, STREAM, WRONG

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:  # outside of the server
    pb_utils = None

CANCEL_S = 0.1
"""How often requests are asked whether their client is gone."""


class ReplyModel:
    """Triton's `TritonPythonModel`: each request is handed on at once, and answered when it is done."""

    folder = Path(__file__).parent.parent

    def initialize(self, args: dict[str, str]) -> None:
        settings = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        self.model, self.outputs = settings["model"], settings["outputs"]
        self.prefix = f"{args['model_name']}/{args['model_instance_name']}"
        self.numbers = itertools.count()
        self.asked: dict[str, tuple[Any, Any]] = {}
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def execute(self, requests: Sequence[Any]) -> list[None]:
        for request in requests:
            name = f"{self.prefix}/{next(self.numbers)}"
            given = json.loads(request.parameters() or "{}")
            # A parameter between models cannot be a fraction.
            parameters = {n: str(v) if isinstance(v, float) else v for n, v in given.items()}
            text = pb_utils.get_input_tensor_by_name(request, "text")
            texts = pb_utils.Tensor("text", text.as_numpy())
            asked = self._request(texts, {**parameters, NAME: name, STREAM: False})
            sender = request.get_response_sender()
            with self.lock:
                self.asked[name] = sender, texts
            threading.Thread(target=self._answer, args=(name, asked, sender), daemon=True).start()
        return [None] * len(requests)

    def _request(self, texts: Any, parameters: dict[str, Any]) -> Any:
        return pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=self.outputs,
            inputs=[texts],
            parameters=parameters,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )

    def _answer(self, name: str, asked: Any, sender: Any) -> None:
        """Send on what the other model answers, its error, or that the request was cancelled."""
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        answer = pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
        try:
            for response in asked.exec(decoupled=True):
                if response.has_error():
                    answer = pb_utils.InferenceResponse(error=_error(response.error().message()))
                elif response.output_tensors():
                    arrays = [(t.name(), t.as_numpy()) for t in response.output_tensors()]
                    answer = pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(n, a) for n, a in arrays])
        except pb_utils.TritonModelException as e:
            answer = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e)))
        finally:
            with self.lock:
                del self.asked[name]
            sender.send(answer, flags=final)

    def _watch(self) -> None:
        """Tell the other model of clients that are gone: cancelling does not reach it by itself.

        It is told until the request ends, since of several instances only one has it.
        """
        while not self.ending.wait(CANCEL_S):
            with self.lock:
                asked = dict(self.asked)
            for name, (sender, texts) in asked.items():
                if sender.is_cancelled():
                    with contextlib.suppress(pb_utils.TritonModelException):
                        list(self._request(texts, {CANCEL: name}).exec(decoupled=True))

    def finalize(self) -> None:
        while self.asked:
            time.sleep(CANCEL_S)
        self.ending.set()
        self.watch.join()


def _error(cause: str) -> Any:
    """An error for the client, with the code that it is to have."""
    if cause.startswith(WRONG):
        return pb_utils.TritonError(cause.removeprefix(WRONG), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.TritonError(cause)
