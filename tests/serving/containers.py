"""The server of a container's context, run as the container does, and a client that can also send nonsense."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelbuild.artifact import Artifact
from modelbuild.commands import container
from tests.kinds.run import run_kind

READY_S = 60
HISTORY = {"from": ({"kind": "onnx", "key": "0123456789abcdef" * 2, "output": "fedcba9876543210" * 2},)}


def context(folder: Path, source: Artifact, **options: Any) -> Artifact:
    """The context of a model."""
    return run_kind("dockerfile", folder, options, inputs={"from": source}, history=HISTORY)


class Running:
    """A server on a free port; settings by name, as the container's environment would give them."""

    def __init__(self, made: Path, log: Path, **settings: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        before = dict(os.environ)
        os.environ.update({f"MODELSERVER_{name.upper()}": str(value) for name, value in settings.items()})
        try:
            self.process = container.start(made, self.port, log)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self.log = log
        container.wait(self.process, self.port, log, READY_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The log's lines with that message; every line must be JSON."""
        return [said for line in self.log.read_text().splitlines() if (said := json.loads(line))["message"] == message]

    def client(self) -> Any:
        """A client of one thread."""
        from tritonclient import http as triton

        return triton.InferenceServerClient(f"127.0.0.1:{self.port}", network_timeout=60, connection_timeout=60)

    def infer(self, model: str, client: Any = None, *, binary: bool = True, **arrays: Any) -> dict[str, Any]:
        """The model's outputs; texts are given as lists of strings and come back as str."""
        from tritonclient import http as triton
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, given in arrays.items():
            array = given if isinstance(given, np.ndarray) else np.array([[t] for t in given], dtype=object)
            inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
        names = [o["name"] for o in (client or self.client()).get_model_metadata(model)["outputs"]]
        outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in names]
        answer = (client or self.client()).infer(model, inputs, outputs=outputs)
        return {n: _text(answer.as_numpy(n)) for n in names}

    def post(self, model: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """A raw request to infer: the status, and the JSON reply."""
        return self.call("POST", f"/v2/models/{model}/infer", body, headers)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            text = reply.read()
            return reply.status, json.loads(text) if text else None
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def _text(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype != object:
        return array
    flat = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1)]
    return np.array(flat, dtype=object).reshape(array.shape)


def text_body(texts: Sequence[str], **more: Any) -> bytes:
    """The JSON of a request of texts."""
    given = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)}
    return json.dumps({"inputs": [given], **more}).encode()


def packed(texts: Sequence[bytes]) -> bytes:
    """Strings as binary data."""
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)
