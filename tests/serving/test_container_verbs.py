"""`serve` and `ask` on a target of kind `dockerfile`: the container's server without a container."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from modelbuild.commands import container
from modelbuild.errors import ProblemError
from tests import models
from tests.sandbox import Sandbox


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("verbs"))
    models.write_tokenizer(sandbox.root / "recipes" / "model")
    models.write_onnx(sandbox.root / "recipes" / "model" / "encoder.onnx")
    sandbox.recipe("""
        onnx:  {kind: onnx, path: model, task: feature-extraction}
        image: {kind: dockerfile, from: onnx, pooling: mean, max_length: 16, name: embed}
        repo:  {kind: triton-repo, from: onnx, text: false}
        tri:   {kind: dockerfile, from: repo, runtime: triton}
    """)
    sandbox.built("image", "tri")
    return sandbox


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_served_asked_stopped_and_the_artifact_is_untouched(project: Sandbox) -> None:
    port = _free_port()
    command = [sys.executable, "-m", "modelbuild", "serve", "image", "--http-port", str(port), "--json"]
    serving = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert serving.stdout
        lines = [*iter(serving.stdout.readline, "}\n"), "}"]
        told = json.loads("".join(lines))
        ran = project.run("ask", "image", "--text", "one", "--text", "another", "--url", f"127.0.0.1:{port}", "--json")
        shown = project.run("ask", "image", "--text", "one", "--url", f"127.0.0.1:{port}")
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=60)

    assert told == {"url": f"http://127.0.0.1:{port}", "model": "embed", "models": ["embed", "embed_model"]}
    assert json.loads(ran.out)["outputs"]["embedding"]["shape"][0] == 2
    assert "tritonclient.http" in shown.err
    assert serving.returncode == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    assert project.run("verify").code == 0
    assert not [p for p in project.root.rglob("__pycache__") if "artifacts" in p.parts]


def test_the_server_ends_when_serve_is_killed(project: Sandbox) -> None:
    port = _free_port()
    command = [sys.executable, "-m", "modelbuild", "serve", "image", "--http-port", str(port), "--json"]
    serving = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
    assert serving.stdout
    assert serving.stdout.readline() == "{\n"

    serving.kill()
    serving.wait()

    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            break
        assert time.monotonic() < until, "the server lives on"
        time.sleep(0.1)


def test_a_port_in_use_and_options_that_are_not_its(project: Sandbox) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        taken = project.run("serve", "image", "--http-port", str(other.server_port))
    options = project.run("serve", "image", "--", "--log-verbose=1")

    assert taken.code == options.code == 2
    assert f"port {other.server_port} is in use" in taken.err
    assert "the container's own server takes no options" in options.err


def test_a_target_around_triton_needs_a_tritonserver(project: Sandbox) -> None:
    ran = project.run("serve", "tri", PATH="/usr/bin:/bin")

    assert ran.code == 2
    assert "there is no tritonserver on this machine" in ran.err


def test_a_wrong_setting_is_told(project: Sandbox) -> None:
    ran = project.run("serve", "image", "--http-port", str(_free_port()), MODELSERVER_WORKERS="many")

    assert ran.code == 2
    assert "MODELSERVER_WORKERS is not a number: 'many'" in ran.err


def test_packages_that_are_not_here_get_an_environment_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("idna==3.10\n")

    first, again = container.python(requirements), container.python(requirements)

    said = subprocess.check_output([first, "-c", "import idna; print(idna.__version__)"], text=True)
    assert (said.strip(), first) == ("3.10", again)
    assert Path(sys.executable) != first

    requirements.write_text("idna==99.99\n")
    with pytest.raises(ProblemError, match="cannot be installed"):
        container.python(requirements)
    assert len([*(tmp_path / "cache" / "modelbuild" / "environments").iterdir()]) == 1
