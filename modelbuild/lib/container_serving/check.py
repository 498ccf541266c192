"""`python -m modelserver.container_serving.check`: start the server on loopback and try it; exit 0 where all holds.

It needs nothing from outside: each model is asked with a sample, then asked wrong, and the server is stopped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = 3
SECONDS = 120.0


def main() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MODELSERVER_HOST": "127.0.0.1", "MODELSERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, "-m", "modelserver"], env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}", server)
        failed = 0
        for what, holds in _checks(f"http://127.0.0.1:{port}"):
            sys.stdout.write(f"{'ok    ' if holds else 'FAILED'} {what}\n")
            failed += not holds
    finally:
        server.terminate()
        server.wait(SECONDS)
    return 1 if failed else 0


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while _get(f"{url}/v2/health/ready")[0] != 200:
        if server.poll() is not None or time.monotonic() > until:
            raise SystemExit("the server does not start; its log tells why")
        time.sleep(0.1)


def _checks(url: str) -> Iterator[tuple[str, bool]]:
    folder = Path(os.environ.get("MODEL_FOLDER", "/app/model"))
    told = json.loads((folder / "server.json").read_text(encoding="utf-8"))
    yield "the server tells what it is", "name" in json.loads(_get(f"{url}/v2")[1])
    for generator in told["generators"]:
        stream = f"{url}/v2/models/{generator['name']}_stream/generate_stream"
        status, body = _post(stream, {"text": "a sample text", "max_new_tokens": 4})
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
        yield f"{generator['name']}: a sample is streamed", status == 200 and bool(events[-1]["finish_reason"])
        yield f"{generator['name']}: an unknown parameter is refused", _post(stream, {"text": "a", "b": 1})[0] == 400
    for name in [m["name"] for m in (*told["texts"], *told["graphs"], *told["generators"])]:
        status, body = _get(f"{url}/v2/models/{name}")
        yield f"{name}: metadata", status == 200
        model = json.loads(body)
        inputs = [_sample(t) for t in model["inputs"]]
        asked = [_post(f"{url}/v2/models/{name}/infer", {"inputs": inputs}) for _ in range(TIMES)]
        yield f"{name}: a sample is answered", all(status == 200 for status, _ in asked)
        outputs = [json.loads(body).get("outputs") for _, body in asked]
        yield f"{name}: the same is answered the same", all(o == outputs[0] for o in outputs)
        given = {o["name"] for o in outputs[0] or ()}
        yield f"{name}: every output is there", given == {t["name"] for t in model["outputs"]}
        wrong: list[tuple[str, Any]] = [
            ("no input", {"inputs": []}),
            ("an unknown input", {"inputs": [{**inputs[0], "name": "none such"}]}),
            ("a wrong datatype", {"inputs": [{**i, "datatype": "COMPLEX"} for i in inputs]}),
            ("a wrong shape", {"inputs": [{**i, "shape": [*i["shape"], 2]} for i in inputs]}),
        ]
        for what, body_ in wrong:
            status, body = _post(f"{url}/v2/models/{name}/infer", body_)
            yield f"{name}: {what} is refused", status == 400 and bool(json.loads(body).get("error"))
    yield "an unknown model is not found", _get(f"{url}/v2/models/none-such")[0] == 404
    yield "metrics are there", b"modelserver_requests_total" in _get(f"{url}/metrics")[1]
    yield "the server is still ready", _get(f"{url}/v2/health/ready")[0] == 200


def _sample(tensor: dict[str, Any]) -> dict[str, Any]:
    shape = [n if n > 0 else 1 for n in tensor["shape"]]
    value: Any = {"BYTES": "a sample text", "BOOL": True}.get(tensor["datatype"], 1)
    count = 1
    for n in shape:
        count *= n
    return {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": [value] * count}


def _get(url: str) -> tuple[int, bytes]:
    return _reply(urllib.request.Request(url))


def _post(url: str, body: Any) -> tuple[int, bytes]:
    return _reply(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}))


def _reply(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return int(reply.status), reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()
    except OSError:
        return 0, b"{}"


if __name__ == "__main__":
    sys.exit(main())
