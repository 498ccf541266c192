"""`serve` and `ask` where something is missing: each says what, and what to do."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests import models
from tests.sandbox import Ran, Sandbox


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project with a text model, a graph alone, and a target that is not served."""
    sandbox = Sandbox(tmp_path_factory.mktemp("verbs"))
    models.write_tokenizer(sandbox.root / "recipes" / "model")
    models.write_onnx(sandbox.root / "recipes" / "model" / "encoder.onnx")
    sandbox.recipe("""
        onnx:    {kind: onnx, path: model, task: feature-extraction}
        texts:   {kind: triton-repo, from: onnx, pooling: mean, max_length: 16, name: embed}
        tensors: {kind: triton-repo, from: onnx, text: false, name: graph}
    """)
    sandbox.built("texts", "tensors")
    return sandbox


def told(ran: Ran) -> str:
    """The one problem's title; its facts and hint follow."""
    assert ran.err.startswith("error: "), ran
    return ran.err.removeprefix("error: ")


def test_only_a_repository_is_served(project: Sandbox) -> None:
    ran = project.run("serve", "onnx")

    assert ran.code == 2
    assert told(ran).startswith("`r:onnx` is not something to serve\n")
    assert "{kind: triton-repo, from: onnx}" in ran.err


def test_without_a_server_on_the_machine(project: Sandbox) -> None:
    ran = project.run("serve", "texts", PATH="/usr/bin:/bin")
    named = project.run("serve", "texts", "--tritonserver", "/nowhere/tritonserver")
    by_environment = project.run("serve", "texts", MODELBUILD_TRITONSERVER="/nowhere/tritonserver")

    assert ran.code == named.code == by_environment.code == 2
    assert told(ran).startswith("there is no tritonserver on this machine\n")
    assert "docs/howto/triton.md" in ran.err
    assert told(named).startswith("`/nowhere/tritonserver` is no program that can be run\n")
    assert "named by: MODELBUILD_TRITONSERVER" in by_environment.err


def test_a_server_that_ends_at_once(project: Sandbox) -> None:
    ran = project.run("serve", "texts", "--tritonserver", "/bin/false", "--http-port", "18431")

    assert ran.code == 2
    assert told(ran).startswith("tritonserver does not serve this repository\n")


def test_a_port_in_use(project: Sandbox) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        ran = project.run("serve", "texts", "--tritonserver", "/bin/false", "--http-port", str(other.server_port))

    assert told(ran).startswith(f"port {other.server_port} is in use\n")


def test_nobody_answers(project: Sandbox) -> None:
    ran = project.run("ask", "texts", "--text", "a", "--url", "127.0.0.1:9")

    assert ran.code == 1
    assert told(ran).startswith("no server answers at 127.0.0.1:9\n")


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (["texts"], "this is not what the model takes"),
        (["texts", "--question", "who?"], "this is not what the model takes"),
        (["texts", "--text", "a", "--model", "other"], "the target has no model `other`"),
        (["tensors", "--text", "a"], "this model takes tensors"),
        (["onnx", "--text", "a"], "`r:onnx` is not something to serve"),
    ],
)
def test_asking_for_what_the_model_does_not_take(project: Sandbox, arguments: list[str], title: str) -> None:
    ran = project.run("ask", *arguments)

    assert ran.code == 2
    assert told(ran).startswith(f"{title}\n")


class Refusing(BaseHTTPRequestHandler):
    """Keeps what it is sent, and refuses it as Triton does."""

    sent: list[tuple[str, Any]] = []

    def do_POST(self) -> None:
        self.sent.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(400)
        self.end_headers()
        self.wfile.write(b'{"error": "no such thing"}')

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_tensors_are_sent_by_the_open_inference_protocol_and_a_refusal_is_told(
    project: Sandbox, tmp_path: Path
) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"input_ids": [[2, 5, 3]], "attention_mask": [[1, 1, 1]]}))
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.handle_request, daemon=True).start()
        ran = project.run("ask", "tensors", "--inputs", str(file), "--url", f"http://127.0.0.1:{server.server_port}")

    ((path, body),) = Refusing.sent
    assert path == "/v2/models/graph/infer"
    assert body["inputs"][0] == {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [[2, 5, 3]]}
    assert ran.code == 1
    assert told(ran).startswith("the server refuses\n")
    assert "no such thing" in ran.err
