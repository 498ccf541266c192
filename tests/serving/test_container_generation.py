"""The container's server generates text: one reply or piece by piece, for many clients, as transformers does."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import ProblemError
from tests.sandbox import Sandbox
from tests.serving import generators
from tests.serving.containers import Running, context, text_body

pytestmark = pytest.mark.torch
TEXTS = ("the people of the water said it was a long day", "how", "Grüße, 世界 😀", "x" * 60, "she could not")
SAID = "Grüße, 世界 😀 — it's a día.\n\tDone"
LONG = "a long text that takes its time. " * 60
NEW = 20
CLIENTS = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny checkpoints' folders."""
    folder = tmp_path_factory.mktemp("sources")
    return {name: generators.write_checkpoint(folder / name, name) for name in ("gpt2", "llama", "t5")}


@pytest.fixture(scope="module")
def graphs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("graphs")
    found = {name: generators.exported(folder / name, source) for name, source in sources.items()}
    found["recital"] = generators.recital(folder / "recital", SAID)
    found["slow"] = generators.recital(folder / "slow", LONG, work=768, context=2048)
    return found


@pytest.fixture(scope="module")
def servers(graphs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(graphs, tmp_path_factory.mktemp("servers"))
    yield made
    made.stop()


class Servers:
    """A server for each model, started when it is first asked for."""

    OPTIONS: dict[str, dict[str, Any]] = {
        "slow": {"max_batch_size": 2, "max_new_tokens": 1900, "max_queue": 6},
        "cut": {"max_length": 8, "generation": {"max_new_tokens": 5, "stop": ["\0"]}},
    }

    def __init__(self, graphs: dict[str, Artifact], folder: Path) -> None:
        self.graphs, self.folder = graphs, folder
        self.running: dict[str, Running] = {}

    def __getitem__(self, name: str) -> Running:
        if name not in self.running:
            graph = self.graphs["gpt2" if name == "cut" else name]
            made = context(self.folder / name, graph, name="story", threads=1, **self.OPTIONS.get(name, {}))
            self.running[name] = Running(made.path, self.folder / f"{name}.log", request_seconds=20)
        return self.running[name]

    def stop(self) -> None:
        for running in self.running.values():
            assert running.stop() in (0, -signal.SIGTERM)


def infer(server: Running, texts: Any, **parameters: Any) -> dict[str, list[Any]]:
    """The reply to texts by the protocol, as lists by output."""
    status, answer = server.post("story", text_body(texts, parameters=parameters))
    assert status == 200, answer
    return {o["name"]: o["data"] for o in answer["outputs"]}


def events(server: Running, body: dict[str, Any], model: str = "story_stream") -> list[dict[str, Any]]:
    """All events of a stream."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
    reply = connection.getresponse()
    found = [json.loads(line.removeprefix(b"data: ")) for line in reply if line.startswith(b"data: ")]
    assert reply.status == 200, found
    assert reply.headers["content-type"].startswith("text/event-stream")
    connection.close()
    return found


def generate(server: Running, body: Any, model: str = "story", verb: str = "generate") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.call("POST", f"/v2/models/{model}/{verb}", data)


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_replies_are_those_of_transformers(servers: Servers, sources: dict[str, Path], name: str) -> None:
    """A batch of texts of many lengths, greedily."""
    expected = [generators.expected(sources[name], text, max_new_tokens=NEW) for text in TEXTS]

    found = infer(servers[name], TEXTS, max_new_tokens=NEW)

    assert found["generated_text"] == expected
    assert set(found["finish_reason"]) <= {"eos", "length"}
    assert all(0 < n <= NEW for n in found["generated_tokens"])
    assert found["truncated"] == [False] * len(TEXTS)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_pieces_make_up_the_reply(servers: Servers, name: str) -> None:
    whole = infer(servers[name], TEXTS, max_new_tokens=NEW)["generated_text"]

    for text, expected in zip(TEXTS, whole, strict=True):
        pieces = events(servers[name], {"text": text, "max_new_tokens": NEW})
        assert "".join(p["generated_text"] for p in pieces) == expected
        assert [bool(p["finish_reason"]) for p in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[0]["model_name"] == "story_stream"

    together = events(servers[name], {"text": list(TEXTS), "parameters": {"max_new_tokens": NEW}, "id": "a"})
    joined = ["".join(p["generated_text"] for p in together if p["index"] == i) for i in range(len(TEXTS))]
    assert joined == whole
    assert {p["id"] for p in together} == {"a"}


def test_generate_gives_values_for_one_text_and_lists_for_several(servers: Servers) -> None:
    one = generate(servers["recital"], {"text": "a", "id": "x"})
    two = generate(servers["recital"], {"text": ["a", "b"], "stop": " 😀"})

    assert one[0] == 200
    assert one[1]["generated_text"] == SAID
    assert (one[1]["finish_reason"], one[1]["truncated"], one[1]["id"]) == ("eos", False, "x")
    assert two[1]["generated_text"] == ["Grüße, 世界"] * 2
    assert two[1]["finish_reason"] == ["stop"] * 2


def test_sampling_is_by_seed(servers: Servers) -> None:
    asked = {"temperature": 1.5, "top_k": 40, "max_new_tokens": NEW}

    first, again, other = (infer(servers["gpt2"], TEXTS[:2], seed=s, **asked)["generated_text"] for s in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_long_text_is_cut_and_said_or_refused(servers: Servers) -> None:
    cut = infer(servers["cut"], ["the people of the water said it was a long day", "how"])
    status, answer = servers["gpt2"].post("story", text_body(["word " * 500]))

    assert (cut["truncated"], cut["tokens"]) == ([True, False], [8, cut["tokens"][1]])
    assert cut["generated_tokens"][0] <= 5
    assert status == 400
    assert "text 0 has" in answer["error"]


def test_an_empty_text_starts_where_the_model_has_a_token_for_that(servers: Servers, sources: dict[str, Path]) -> None:
    assert infer(servers["gpt2"], [""], max_new_tokens=3)["tokens"] == [1]


# --- the protocol -----------------------------------------------------------------------------------------------


def test_metadata_and_metrics(servers: Servers) -> None:
    server = servers["recital"]
    before = infer(server, ["a"])["generated_tokens"][0]

    told = {name: server.call("GET", f"/v2/models/{name}")[1] for name in ("story", "story_stream")}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()

    assert [o["name"] for o in told["story"]["outputs"]] == [
        "generated_text", "finish_reason", "generated_tokens", "tokens", "truncated",
    ]  # fmt: skip
    assert told["story_stream"]["outputs"][-1] == {"name": "index", "datatype": "INT32", "shape": [-1, 1]}
    assert "generate" in server.call("GET", "/v2")[1]["extensions"]
    line = next(x for x in metrics.splitlines() if x.startswith('modelserver_generated_tokens_total{model="story"}'))
    assert float(line.rpartition(" ")[2]) >= before
    assert 'modelserver_waiting_rows{model="story"} 0.0' in metrics
    assert server.lines("infer")[-1]["tokens"] == before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the request is not JSON"),
        (b"[]", "the request is not a JSON object"),
        (b"{}", "`text` is missing"),
        (b'{"text": 3}', "`text` is no text, nor a list of texts"),
        (b'{"text": []}', "`text` is no text, nor a list of texts"),
        (b'{"text": ["a", 1]}', "`text` is no text, nor a list of texts"),
        (b'{"text": "a", "id": 1}', "`id` is not a string"),
        (b'{"text": "a", "parameters": 1}', "`parameters` is not an object"),
        (b'{"text": "a", "max_tokens": 1}', "unknown parameter `max_tokens`"),
        (b'{"text": "a", "max_new_tokens": 0}', "`max_new_tokens` is not a whole number of at least 1"),
        (b'{"text": "a", "max_new_tokens": 100000}', "`max_new_tokens` is 100000, and this model gives at most"),
        (b'{"text": "a", "temperature": "hot"}', "`temperature` is not a number: 'hot'"),
        (json.dumps({"text": ["a"] * 33}).encode(), "the request has 33 rows, and at most 32 are taken"),
    ],
)
def test_a_bad_request_is_refused_and_the_next_is_answered(servers: Servers, body: bytes, said: str) -> None:
    server = servers["recital"]
    for model, verb in (("story", "generate"), ("story_stream", "generate_stream")):
        status, answer = generate(server, body, model, verb)
        assert status == 400, answer
        assert said in answer["error"]
    assert generate(server, {"text": "a"})[1]["generated_text"] == SAID


def test_a_model_is_asked_by_the_verb_that_is_its_own(servers: Servers) -> None:
    server = servers["recital"]
    assert server.post("story_stream", text_body(["a"]))[0] == 400
    assert "ask it by `generate_stream`" in generate(server, {"text": "a"}, "story_stream")[1]["error"]
    assert generate(server, {"text": "a"}, "none")[0] == 404
    status, answer = server.post("story", text_body(["a"], parameters={"max_tokens": 3}))
    assert (status, "unknown parameter `max_tokens`" in answer["error"]) == (400, True)
    pieces = events(server, {"text": "a"}, model="story")  # which replies, and streams where it is asked to
    assert "".join(p["generated_text"] for p in pieces) == SAID


# --- many clients -----------------------------------------------------------------------------------------------


def test_clients_at_once_get_what_each_would_get_alone(servers: Servers) -> None:
    server = servers["gpt2"]
    alone = {text: infer(server, [text], max_new_tokens=NEW)["generated_text"][0] for text in TEXTS}
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(8):
            text = TEXTS[(number + turn) % len(TEXTS)]
            if turn % 2:
                got = "".join(p["generated_text"] for p in events(server, {"text": text, "max_new_tokens": NEW}))
            else:
                got = infer(server, [text], max_new_tokens=NEW)["generated_text"][0]
            if got != alone[text]:
                wrong.append(f"{text}: {got}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def _streaming(server: Running) -> tuple[socket.socket, Any]:
    """A connection whose first piece has come."""
    connection = server.connect()
    body = json.dumps({"text": "a"}).encode()
    head = f"POST /v2/models/story_stream/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    lines = connection.makefile("rb")
    while not lines.readline().startswith(b"data: "):
        pass
    return connection, lines


def test_a_client_that_leaves_makes_room_for_others(servers: Servers) -> None:
    """Both places are taken by texts of a minute or so; a third comes in when their clients have gone."""
    server = servers["slow"]
    taken = [_streaming(server) for _ in range(2)]
    found: list[float] = []

    def third() -> None:
        started = time.monotonic()
        infer(server, ["b"], max_new_tokens=2)
        found.append(time.monotonic() - started)

    thread = threading.Thread(target=third)
    thread.start()
    time.sleep(0.5)
    assert not found, "the third had no room yet"
    for connection, lines in taken:
        lines.close()
        connection.close()
    thread.join(20)

    assert found
    until = time.monotonic() + 10
    while sum(line["status"] == 499 for line in server.lines("generate_stream")) < 2:
        assert time.monotonic() < until, "the log does not tell of those who left"
        time.sleep(0.05)


def test_a_client_that_leaves_before_its_reply_is_dropped(servers: Servers) -> None:
    server = servers["slow"]
    body = text_body(["a"])
    connection = server.connect()
    connection.sendall(
        f"POST /v2/models/story/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    time.sleep(0.5)
    connection.close()

    until = time.monotonic() + 10
    while not any(line["status"] == 499 for line in server.lines("infer")):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert infer(server, ["b"], max_new_tokens=2)["generated_tokens"] == [2]


def test_more_than_the_queue_holds_is_answered_503(servers: Servers) -> None:
    server = servers["slow"]
    taken = [_streaming(server) for _ in range(2)]
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(server.post("story", text_body(["a", "b"], parameters={"max_new_tokens": 1}))[0])

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for connection, lines in taken:
        lines.close()
        connection.close()
    for thread in threads:
        thread.join(30)

    assert sorted(statuses) == [200, 200, 200, 503, 503]


def test_a_stop_lets_what_is_said_be_finished(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = context(tmp_path / "context", graphs["slow"], name="story", threads=1, max_new_tokens=1900)
    server = Running(made.path, tmp_path / "log")
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(
            "".join(p["generated_text"] for p in events(server, {"text": "a", "max_new_tokens": 300}))
        )
    )
    thread.start()
    time.sleep(0.5)

    code = server.stop()
    thread.join(20)

    assert code in (0, -signal.SIGTERM)
    assert len(found[0]) >= 300
    assert LONG.startswith(found[0])


def test_a_stop_does_not_wait_for_ever(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = context(tmp_path / "context", graphs["slow"], name="story", threads=1, max_new_tokens=1900)
    server = Running(made.path, tmp_path / "log", stop_seconds=1)
    connection, lines = _streaming(server)

    started = time.monotonic()
    server.stop()

    assert time.monotonic() - started < 10
    lines.close()
    connection.close()


# --- what is built, and the verbs -------------------------------------------------------------------------------


def test_the_context_tries_itself(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = context(tmp_path / "context", graphs["recital"], name="story")
    folders = {"PYTHONPATH": str(made.path / "server"), "MODEL_FOLDER": str(made.path / "model")}
    command = [sys.executable, "-m", "modelserver.container_serving.check"]

    ran = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **folders}, capture_output=True, text=True, timeout=120, check=False
    )

    assert ran.returncode == 0, ran
    assert "ok     story: a sample is streamed" in ran.stdout
    assert made.descriptor.settings["stream"] == "story_stream"


@pytest.mark.parametrize("option", [{"pooling": "mean"}, {"buckets": [16]}, {"max_answer_length": 3}])
def test_options_of_other_tasks_are_refused(graphs: dict[str, Artifact], tmp_path: Path, option: Any) -> None:
    with pytest.raises(ProblemError, match=f"`{next(iter(option))}` is not for generation"):
        context(tmp_path / "context", graphs["recital"], **option)


def test_served_and_asked_with_the_pieces_as_they_come(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    generators.write_recital(sandbox.root / "recipes" / "model", SAID)
    sandbox.recipe("""
        onnx:  {kind: onnx, path: model, task: text-generation}
        image: {kind: dockerfile, from: onnx, name: recital}
    """)
    sandbox.built()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serving = subprocess.Popen(
        [*sandbox.command("serve", "image", "--http-port", str(port))],
        cwd=sandbox.root, env=sandbox.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert serving.stdout
        told = ""
        while "print(answer" not in told:
            line = serving.stdout.readline()
            assert line, told
            told += line
        asked = ["ask", "image", "--text", "a", "--url", f"127.0.0.1:{port}"]
        reply = sandbox.run(*asked)
        streamed = sandbox.run(*asked, "--text", "b", "--stream", "--parameter", "stop= 😀")
        refused = sandbox.run(*asked, "--stream", "--parameter", "max_tokens=3")
        curl = next(x for x in told.splitlines() if "generate_stream" in x)
        by_curl = sandbox.shell(curl)
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=60)

    assert "grpc" not in told
    assert f"generated_text [1, 1]\n  {SAID}\n" in reply.out, reply
    assert streamed.out == "Grüße, 世界\nGrüße, 世界\n", streamed
    assert "unknown parameter `max_tokens`" in refused.err
    assert by_curl.out.count("data: ") > 2, by_curl
