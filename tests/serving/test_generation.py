"""A real Triton server generates text: one reply or piece by piece, for many clients, as transformers does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.commands import tritonserver
from modelbuild.lib import sessions
from modelbuild.report import client
from tests.sandbox import REPOSITORY, Sandbox
from tests.serving import generators
from tests.serving.conftest import Served

pytestmark = pytest.mark.torch
TEXTS = ("the people of the water said it was a long day", "how", "Grüße, 世界 😀", "x" * 60, "she could not")
SAID = "Grüße, 世界 😀 — it's a día.\n\tDone"
LONG = "a long text that takes its time. " * 60
NEW = 20
CLIENTS = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, program: str) -> dict[str, Path]:
    """The tiny checkpoints' folders."""
    folder = tmp_path_factory.mktemp("sources")
    return {name: generators.write_checkpoint(folder / name, name) for name in ("gpt2", "t5")}


@pytest.fixture(scope="module")
def graphs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("graphs")
    found = {name: generators.exported(folder / name, source) for name, source in sources.items()}
    found["recital"] = generators.recital(folder / "recital", SAID)
    found["slow"] = generators.recital(folder / "slow", LONG, work=768, context=2048)
    return found


@pytest.fixture(scope="module")
def server(program: str, graphs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server of all repositories."""
    folder = tmp_path_factory.mktemp("repositories")
    one_thread = {"parameters": {"intra_op_thread_count": 1}}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2": ("gpt2", one_thread),
        "cut": ("gpt2", {**one_thread, "max_length": 8, "generation": {"max_new_tokens": 5, "stop": ["\0"]}}),
        "t5": ("t5", one_thread),
        "recital": ("recital", one_thread),
        "slow": ("slow", {**one_thread, "max_batch_size": 2, "max_new_tokens": 1900}),
        "graphs": ("t5", {"text": False, "backend": "python"}),
    }
    made = [
        generators.served(folder / name, graphs[graph], name=name, **options)
        for name, (graph, options) in wanted.items()
    ]
    running = Served(program, folder, [m.path / "models" for m in made])
    yield running
    tritonserver.stop(running.process)


def generate(server: Served, model: str, texts: Any, **parameters: Any) -> dict[str, Any]:
    """The reply to texts, as lists by output."""
    from tritonclient import http

    array = np.array([[t] for t in texts], dtype=object)
    given = http.InferInput("text", array.shape, "BYTES")
    given.set_data_from_numpy(array)
    answer = server.client().infer(model, [given], parameters=parameters)
    found = {o["name"]: answer.as_numpy(o["name"]).ravel().tolist() for o in answer.get_response()["outputs"]}
    return {n: [v.decode() if isinstance(v, bytes) else v for v in values] for n, values in found.items()}


class Stream:
    """A client of a model that streams, by gRPC."""

    def __init__(self, server: Served) -> None:
        grpc = pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
        self.grpc = grpc
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}")
        self.pieces: dict[int, list[str]] = {}
        self.reasons: dict[int, str] = {}
        self.error: Any = None
        self.begun, self.over = threading.Event(), threading.Event()
        self.client.start_stream(self._hear)

    def ask(self, model: str, texts: Any, **parameters: Any) -> None:
        array = np.array([[t] for t in texts], dtype=object)
        given = self.grpc.InferInput("text", array.shape, "BYTES")
        given.set_data_from_numpy(array)
        self.client.async_stream_infer(model, [given], parameters=parameters, enable_empty_final_response=True)

    def _hear(self, result: Any, error: Any) -> None:
        if error is not None:
            self.error = error
            self.over.set()
            return
        response = result.get_response()
        for place, index in enumerate(result.as_numpy("index").ravel() if response.outputs else ()):
            text = result.as_numpy("generated_text").ravel()[place].decode()
            self.pieces.setdefault(int(index), []).append(text)
            self.reasons[int(index)] = result.as_numpy("finish_reason").ravel()[place].decode()
        self.begun.set()
        if response.parameters["triton_final_response"].bool_param:
            self.over.set()

    @property
    def texts(self) -> list[str]:
        assert self.over.wait(60), "the stream does not end"
        return ["".join(self.pieces[i]) for i in sorted(self.pieces)]

    def close(self, **how: Any) -> None:
        self.client.stop_stream(**how)
        self.client.close()


@pytest.fixture
def stream(server: Served) -> Iterator[Callable[[], Stream]]:
    made: list[Stream] = []

    def get() -> Stream:
        made.append(Stream(server))
        return made[-1]

    yield get
    for one in made:
        one.close(cancel_requests=True)


# --- the same as transformers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_a_reply_is_what_transformers_generates(server: Served, sources: dict[str, Path], model: str) -> None:
    answer = generate(server, model, TEXTS, max_new_tokens=NEW)

    expected = [generators.expected(sources[model], text, max_new_tokens=NEW) for text in TEXTS]
    assert answer["generated_text"] == expected
    assert answer["tokens"] == [len(text.encode()) for text in TEXTS]
    assert set(answer["finish_reason"]) <= {"length", "eos"}
    assert answer["truncated"] == [False] * len(TEXTS)
    for text, alone in zip(TEXTS, expected, strict=True):
        assert generate(server, model, [text], max_new_tokens=NEW)["generated_text"] == [alone]


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_a_stream_is_the_reply_in_pieces(server: Served, stream: Callable[[], Stream], model: str) -> None:
    expected = generate(server, model, TEXTS, max_new_tokens=NEW)

    client = stream()
    client.ask(f"{model}_stream", TEXTS, max_new_tokens=NEW)

    assert client.texts == expected["generated_text"]
    assert [client.reasons[i] for i in range(len(TEXTS))] == expected["finish_reason"]
    assert client.error is None


def test_eight_clients_at_once_get_what_each_gets_alone(server: Served, stream: Callable[[], Stream]) -> None:
    """Half of them stream; texts of many lengths, each client several in a row."""
    prompts = [TEXTS[i % len(TEXTS)][: 3 + 7 * (i % 9)] for i in range(CLIENTS * 4)]
    expected = [generate(server, "gpt2", [p], max_new_tokens=NEW)["generated_text"][0] for p in prompts]
    found: dict[int, str] = {}

    def work(first: int) -> None:
        for i in range(first, len(prompts), CLIENTS):
            if first % 2:
                client = Stream(server)
                client.ask("gpt2_stream", [prompts[i]], max_new_tokens=NEW)
                found[i] = client.texts[0]
                client.close()
            else:
                found[i] = generate(server, "gpt2", [prompts[i]], max_new_tokens=NEW)["generated_text"][0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    print(f"{len(prompts) * NEW / (time.perf_counter() - started):.0f} tokens/s")  # noqa: T201 - a figure for the log
    assert [found[i] for i in range(len(prompts))] == expected


def test_the_graphs_alone_answer_as_onnx_runtime_does(server: Served, graphs: dict[str, Artifact]) -> None:
    """An encoder and a decoder are a model each; the cache may be empty."""
    for component, sizes in (("encoder", {}), ("decoder", {"past_sequence": 0}), ("decoder", {"past_sequence": 3})):
        graph = graphs["t5"].descriptor.components[component]
        feed = sessions.random_inputs(graph.inputs, {"batch": 2, "sequence": 3, "source_sequence": 5, **sizes})

        answer = server.infer(f"graphs_{component}", feed)

        session = sessions.open_session(graphs["t5"].path / graph.file)
        for output, value in zip(graph.outputs, session.run(None, feed), strict=True):
            np.testing.assert_allclose(answer[output.name], value, atol=1e-5)


# --- what a request may say -------------------------------------------------------------------------------------


def test_pieces_are_whole_characters(stream: Callable[[], Stream]) -> None:
    client = stream()
    client.ask("recital_stream", ["a", "b"])

    assert client.texts == [SAID, SAID]
    assert client.reasons == {0: "eos", 1: "eos"}
    assert len([p for p in client.pieces[0] if p]) == len(SAID)


def test_a_request_says_where_to_stop_and_how_to_choose(server: Served) -> None:
    stopped = generate(server, "recital", ["a"], stop=" 😀")
    counted = generate(server, "recital", ["a"], max_new_tokens=5)
    drawn = [
        generate(server, "gpt2", ["how"], temperature=0.9, top_p=0.95, seed=s, max_new_tokens=NEW) for s in (1, 1, 2)
    ]

    assert (stopped["generated_text"], stopped["finish_reason"]) == (["Grüße, 世界"], ["stop"])
    assert (counted["generated_text"], counted["generated_tokens"]) == (["Grü"], [5])
    assert drawn[0] == drawn[1]
    assert drawn[0]["generated_text"] != drawn[2]["generated_text"]


def test_a_model_that_cuts_texts_says_so(server: Served, sources: dict[str, Path]) -> None:
    answer = generate(server, "cut", ["the people", "people"])

    expected = generators.expected(sources["gpt2"], "e people", max_new_tokens=5)
    assert answer["generated_text"][0] == expected
    assert answer["truncated"] == [True, False]
    assert answer["tokens"] == [8, 6]


def _post(server: Served, path: str, body: dict[str, Any]) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{server.url}/v2/models/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_tritons_generate_extension_works_with_both(server: Served) -> None:
    asked = {"text": "a", "max_new_tokens": 100, "stop": " 😀", "temperature": 0}

    status, replied = _post(server, "recital/generate", asked)
    _, streamed = _post(server, "recital_stream/generate_stream", asked)

    assert (status, json.loads(replied)["generated_text"]) == (200, "Grüße, 世界")
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line]
    assert "".join(e["generated_text"] for e in events) == "Grüße, 世界"
    assert [e["finish_reason"] for e in events if e["finish_reason"]] == ["stop"]


@pytest.mark.parametrize(
    ("texts", "parameters", "said"),
    [
        (["a"], {"max_tokens": 3}, "unknown parameter `max_tokens`"),
        (["a"], {"temperature": -1}, "`temperature` is not 0 (greedy) or more"),
        (["a"], {"max_new_tokens": 10**6}, "this model gives at most"),
        (["a" * 200], {}, "text 0 has 200 tokens, and 1 more would make it longer than the 96"),
        ([b"\xff\xfe"], {}, "`text` is not UTF-8"),
    ],
)
@pytest.mark.parametrize("model", ["gpt2", "gpt2_stream"])
def test_what_cannot_be_done_is_refused_as_the_clients_fault_and_the_server_lives_on(
    server: Served, stream: Callable[[], Stream], model: str, texts: Any, parameters: dict[str, Any], said: str
) -> None:
    from tritonclient.utils import InferenceServerException

    if model == "gpt2":
        with pytest.raises(InferenceServerException) as raised:
            generate(server, model, texts, **parameters)
        assert raised.value.status() == "400"
        assert said in raised.value.message()
    else:
        client = stream()
        client.ask(model, texts, **parameters)
        assert client.over.wait(10)
        assert said in client.error.message()
    assert generate(server, "gpt2", ["a"], max_new_tokens=2)["generated_tokens"] == [2]


def test_too_many_texts_in_one_request_are_refused(server: Served) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="batch-size must be <= 32"):
        generate(server, "gpt2", ["a"] * 33)


def test_an_empty_text_and_a_very_long_one(server: Served, sources: dict[str, Path]) -> None:
    empty = generate(server, "gpt2", [""], max_new_tokens=NEW)
    long = generate(server, "t5", ["the people " * 2000], max_new_tokens=NEW)

    assert (empty["tokens"], empty["generated_tokens"]) == ([1], [NEW])
    assert (long["tokens"], long["truncated"]) == ([generators.POSITIONS], [True])
    cut = ("the people " * 20)[: generators.POSITIONS]
    assert long["generated_text"] == [generators.expected(sources["t5"], cut, max_new_tokens=NEW)]


# --- clients that leave -----------------------------------------------------------------------------------------


def _free(server: Served, seconds: float = 5) -> None:
    """Both slots of the slow model are free soon, and not only when the texts in them end (after about 20 s)."""
    started = time.monotonic()
    assert generate(server, "slow", ["a", "b"], max_new_tokens=3)["generated_tokens"] == [3, 3]
    assert time.monotonic() - started < seconds


def test_a_stream_that_is_cancelled_frees_its_slots(server: Served, stream: Callable[[], Stream]) -> None:
    client = stream()
    client.ask("slow_stream", ["a", "b"])
    assert client.begun.wait(10)

    client.close(cancel_requests=True)

    _free(server)


def test_a_reply_that_is_cancelled_frees_its_slots(server: Served) -> None:
    grpc = pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}")
    array = np.array([["a"], ["b"]], dtype=object)
    given = grpc.InferInput("text", array.shape, "BYTES")
    given.set_data_from_numpy(array)
    answers: list[Any] = []
    context = client.async_infer("slow", [given], lambda result, error: answers.append(error))
    time.sleep(0.5)

    context.cancel()

    _free(server)
    client.close()


KILLED = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], b'{"text": ["a", "b"]}')
with urllib.request.urlopen(request) as reply:
    print(reply.readline(), flush=True)
    reply.read()
"""


def test_a_client_that_is_killed_frees_its_slots(server: Served) -> None:
    url = f"http://{server.url}/v2/models/slow_stream/generate_stream"
    with subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert b"data: " in client.stdout.readline()

        client.kill()

    _free(server)


def test_a_server_that_is_stopped_under_load_ends_cleanly(
    program: str, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    made = generators.served(tmp_path / "made", graphs["slow"], name="slow", max_new_tokens=150)
    running = Served(program, tmp_path, [made.path / "models"])
    client = Stream(running)
    client.ask("slow_stream", ["a"])
    assert client.begun.wait(10)

    running.process.terminate()

    assert client.texts == [LONG[:150]]
    client.close()
    assert running.process.wait(30) == 0


# --- the verbs --------------------------------------------------------------------------------------------------


def test_ask_prints_the_reply_or_the_pieces_as_they_come(server: Served, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    generators.write_recital(sandbox.root / "recipes" / "model", SAID)
    sandbox.recipe("""
        onnx:  {kind: onnx, path: model, task: text-generation}
        serve: {kind: triton-repo, from: onnx, name: recital}
    """)
    sandbox.built()
    asked = ["ask", "serve", "--text", "a", "--url", server.url]

    reply = sandbox.run(*asked)
    streamed = sandbox.run(*asked, "--text", "b", "--stream", "--parameter", "stop= 😀", "--parameter", "temperature=0")
    events = sandbox.run(*asked, "--stream", "--json", "--parameter", "max_new_tokens=3")
    refused = [sandbox.run(*asked, *more, "--parameter", "max_tokens=3") for more in ((), ("--stream",))]
    wrong = sandbox.run(*asked, "--parameter", "max_new_tokens")

    assert f"generated_text [1, 1]\n  {SAID}\n" in reply.out, reply
    assert "client.infer(" in reply.err
    assert streamed.out == "Grüße, 世界\nGrüße, 世界\n", streamed
    assert "generate_stream" in streamed.err
    assert '"generated_text": "G"' in events.out
    assert all("unknown parameter `max_tokens`" in ran.err and ran.code == 1 for ran in refused), refused
    assert "`max_new_tokens` is not a parameter" in wrong.err


def test_the_program_that_serve_prints_streams(server: Served) -> None:
    program = client.streaming(f"127.0.0.1:{server.ports.grpc}", "recital_stream")
    pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == " 世界 😀 — it'", "20 bytes, from the ninth on: the sample has nine"


def test_the_how_to_s_programs_work(server: Served) -> None:
    pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
    page = (REPOSITORY / "docs" / "howto" / "triton.md").read_text()
    programs = [p for p in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if '"story' in p]
    assert len(programs) == 2

    for program in programs:
        for said, meant in (
            ("127.0.0.1:8000", server.url),
            ("127.0.0.1:8001", f"127.0.0.1:{server.ports.grpc}"),
            ('"story', '"recital'),
        ):
            program = program.replace(said, meant)
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout == " 😀 — it's a día.\n\tDone"
