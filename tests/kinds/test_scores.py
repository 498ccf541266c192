"""Scores of labelled data: words, answers, generated texts, labels of tensors, and metrics of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import msgspec
import numpy as np
import pytest

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import reading, samples, sessions, word_labels
from tests import graphs, models
from tests.kinds.run import run_kind

TEXTS = [" ".join(models.WORDS[i : i + 4 + i % 5]) for i in range(12)]


class Bench:
    """Datasets and models of a test, in its folder."""

    def __init__(self, folder: Path, checkpoint_for: Callable[[str, str], Artifact]) -> None:
        self.folder, self.checkpoint_for = folder, checkpoint_for

    def new(self, name: str) -> Path:
        return self.folder / f"{name}{len(list(self.folder.iterdir()))}"

    def model(self, model_type: str, task: str) -> Artifact:
        return run_kind("onnx", self.new("onnx"), {}, inputs={"from": self.checkpoint_for(model_type, task)})

    def data(self, rows: list[dict[str, Any]], tokenizer: Artifact, **options: Any) -> Artifact:
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run_kind("dataset", self.new("data"), options, inputs={"tokenizer": tokenizer}, sources={"path": path})

    def arrays(self, **arrays: Any) -> Artifact:
        path = self.folder / "rows.npz"
        np.savez(path, **arrays)
        return run_kind("dataset", self.new("data"), {"label": "label"}, sources={"path": path})

    def figures(self, model: Artifact, data: Artifact, require: dict[str, Any], **more: Any) -> dict[str, float]:
        inputs = {"from": model, "data": data, **({"against": more.pop("against")} if "against" in more else {})}
        sources = {"code": more.pop("code")} if "code" in more else {}
        options = {"require": require, **more}
        return run_kind("verified", self.new("verified"), options, inputs=inputs, sources=sources).descriptor.metrics

    def refusal(self, *arguments: Any, **more: Any) -> Problem:
        with pytest.raises(ProblemError) as caught:
            self.figures(*arguments, **more)
        (found,) = caught.value.problems
        return found


@pytest.fixture
def bench(tmp_path: Path, checkpoint_for: Callable[[str, str], Artifact]) -> Bench:
    return Bench(tmp_path, checkpoint_for)


def logits(model: Artifact, data: Artifact) -> list[list[Any]]:
    """The model's outputs for each sample alone."""
    session = sessions.open_session(model.model_path)
    names = [i.name for i in session.get_inputs()]
    return [[o[0] for o in session.run(None, feeds)] for feeds in samples.of(data).batches(1, names=names)]


# --- token classification ---------------------------------------------------------------------------------------


def tagged(words: bool, **changes: Any) -> list[dict[str, Any]]:
    rows = []
    for text in TEXTS:
        tags = [models.LABELS[len(word) % 3] for word in text.split()]
        rows.append({"tokens": [f"{w}ly" for w in text.split()] if words else text, "tags": tags})
    return [{**rows[0], **changes}, *rows[1:]]


@pytest.mark.torch
@pytest.mark.parametrize("words", [True, False])
def test_words_have_the_class_of_their_first_token(bench: Bench, words: bool) -> None:
    """Words of two tokens (`the`, `##ly`), in a list; or of one, parted by white space."""
    model = bench.model("bert", "token-classification")
    data = bench.data(tagged(words), model, columns="tokens", label="tags")
    found = bench.figures(model, data, {"accuracy": {"min": 0}, "f1": {"min": 0}}, batch_size=5)
    right = total = 0
    for (row,), sample in zip(logits(model, data), tagged(words), strict=True):
        firsts = row[1:-1][:: 2 if words else 1]
        assert len(firsts) == len(sample["tags"])
        right += sum(models.LABELS[int(a.argmax())] == tag for a, tag in zip(firsts, sample["tags"], strict=True))
        total += len(firsts)
    assert 0 < right < total
    assert found["accuracy"] == pytest.approx(right / total, rel=1e-5)
    assert 0 < found["f1"] < 1


@pytest.mark.torch
@pytest.mark.parametrize("tags", [["joy"], "joy", ["joy"] * 4 + ["hope"]])
def test_labels_that_are_not_one_for_each_word(bench: Bench, tags: Any) -> None:
    model = bench.model("bert", "token-classification")
    rows = tagged(False, tokens="the people of the water" if len(tags) == 5 else TEXTS[0], tags=tags)
    found = bench.refusal(model, bench.data(rows, model, columns="tokens", label="tags"), {"accuracy": {"min": 0}})
    classes = len(tags) == 5
    title = "a label is none of the model's classes" if classes else "a sample has not one label for each word"
    assert found.title == title
    assert dict(found.facts)["sample"] == "1"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", {("A", 1, 3)}),
        ("B-A B-A I-B", {("A", 0, 1), ("A", 1, 2), ("B", 2, 3)}),
        ("I-A I-A O I-A", {("A", 0, 2), ("A", 3, 4)}),
        ("O O", set()),
    ],
)
def test_entities_of_tags(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert {*word_labels.entities(tags.split())} == expected


def test_an_entity_counts_when_its_class_and_both_ends_are_right() -> None:
    names = dict(enumerate(("O", "B-A", "I-A", "B-B")))
    wanted, got = [1, 2, 0, 3, 0], [1, 2, 0, 1, 3]
    found = word_labels.scored([(wanted, got), ([1, 2], [1, 0])], names)
    assert found["f1"] == pytest.approx(2 * 1 / (3 + 4))
    assert found["accuracy"] == pytest.approx(4 / 7)


# --- question answering -----------------------------------------------------------------------------------------

QUESTION, CONTEXT = "what did they see?", "The people of the water could, with time, see it and write."


@pytest.mark.torch
def test_answers_are_spans_of_the_context(bench: Bench) -> None:
    model = bench.model("bert", "question-answering")
    rows = [
        {"q": QUESTION, "c": " ".join([*CONTEXT.split()[i:], CONTEXT]), "a": {"text": ["nothing"], "answer_start": [0]}}
        for i in range(6)
    ]
    first = bench.data(rows, model, columns=["q", "c"], label="a")
    chosen = []
    for sample, (starts, ends) in enumerate(logits(model, first)):
        places = samples.of(first).places(sample)
        inside = [i for i, (of, _, _) in enumerate(places) if of == 1]
        a, b = max(((i, j) for i in inside for j in inside if 0 <= j - i < 30), key=lambda s: starts[s[0]] + ends[s[1]])
        chosen.append(rows[sample]["c"][places[a][1] : places[b][2]])
    for row, text in zip(rows[:4], chosen, strict=False):
        row["a"] = [f"The {text.upper()}!", "nothing"]
    rows[4]["a"] = f"{chosen[4]} oil"
    data = bench.data(rows, model, columns=["q", "c"], label="a")
    found = bench.figures(model, data, {"exact_match": {"min": 0.6}, "f1": {"min": 0.6}}, batch_size=4)
    assert found["exact_match"] == pytest.approx(4 / 6, rel=1e-5)
    count = len(reading.normal(chosen[4]).split())
    assert found["f1"] == pytest.approx((4 + 2 * count / (2 * count + 1)) / 6, rel=1e-5)


@pytest.mark.torch
def test_a_question_may_have_no_answer(bench: Bench) -> None:
    model = bench.model("bert", "question-answering")
    rows = [{"q": QUESTION, "c": " ".join(CONTEXT.split()[i:]), "a": []} for i in range(6)]
    data = bench.data(rows, model, columns=["q", "c"], label="a")
    found = bench.figures(model, data, {"exact_match": {"min": 0}})
    none = 0
    for sample, (starts, ends) in enumerate(logits(model, data)):
        inside = [i for i, (of, _, _) in enumerate(samples.of(data).places(sample)) if of == 1]
        none += starts[0] + ends[0] > max(starts[i] + ends[j] for i in inside for j in inside if 0 <= j - i < 30)
    assert found["exact_match"] == found["f1"] == pytest.approx(none / 6, rel=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("columns", "answer", "title"),
    [
        (["q", "c"], 7, "a label is no answer to a question"),
        (["q", "c"], "", "a label is no answer to a question"),
        (["q", "c"], ["oil", " "], "a label is no answer to a question"),
        ("c", "oil", "a question is not answered from a single text"),
    ],
)
def test_labels_that_are_no_answers(bench: Bench, columns: Any, answer: Any, title: str) -> None:
    model = bench.model("bert", "question-answering")
    data = bench.data([{"q": QUESTION, "c": CONTEXT, "a": answer}], model, columns=columns, label="a")
    assert bench.refusal(model, data, {"f1": {"min": 0}}).title == title


@pytest.mark.parametrize(
    ("text", "right", "f1"),
    [("The Oil.", "oil", 1), ("oil and water", "the oil", 0.5), ("", "", 1), ("", "oil", 0), ("time", "oil", 0)],
)
def test_answers_are_compared_as_squad_does(text: str, right: str, f1: float) -> None:
    assert reading.overlap(text, right) == pytest.approx(f1)
    assert reading.scored([text], [[right]])["exact_match"] == (f1 == 1)


# --- language models --------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_perplexity_is_that_of_transformers(
    bench: Bench, model_type: str, folder_for: Callable[[str, str], Path]
) -> None:
    """With a cache, which is empty; texts of several lengths share batches, padded on the left."""
    import torch
    import transformers

    model = bench.model(model_type, "text-generation")
    assert any(t.name.startswith("past_key_values") for t in model.descriptor.model().inputs)
    data = bench.data([{"text": t} for t in TEXTS], model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder_for(model_type, "text-generation")).eval()
    loss = tokens = 0.0
    for feeds in samples.of(data).batches(1, names=["input_ids"]):
        ids = torch.from_numpy(feeds["input_ids"])
        with torch.inference_mode():
            loss += float(loaded(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    require = {"perplexity": {"max": 1e9, "max_loss": 0.01}, "cosine": {"min": 0.999}, "top1_agreement": {"min": 1}}
    found = bench.figures(model, data, require, against=model, batch_size=5)
    assert found["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-3)


# --- generated texts --------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_generated_texts_are_those_of_transformers(
    bench: Bench, model_type: str, folder_for: Callable[[str, str], Path]
) -> None:
    import transformers
    from tokenizers import Tokenizer

    model = bench.model(model_type, "text2text-generation")
    rows = [{"text": t, "to": "?"} for t in TEXTS]
    source = samples.of(bench.data(rows, model, columns="text", label="to"))
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder_for(model_type, "text2text-generation")).eval()
    tokenizer = Tokenizer.from_file(str(folder_for(model_type, "text2text-generation") / "tokenizer.json"))
    texts = []
    for feeds in source.batches(1, names=["input_ids", "attention_mask"]):
        import torch

        given = {name: torch.from_numpy(values) for name, values in feeds.items()}
        made = loaded.generate(**given, max_new_tokens=9, do_sample=False, num_beams=1)
        texts.append(tokenizer.decode(made[0].tolist(), skip_special_tokens=True).strip())
    assert len(set(texts)) > 3
    for i, row in enumerate(rows):
        row["to"] = texts[i] if i % 3 else f"{texts[i]} oil"
    data = bench.data(rows, model, columns="text", label="to")
    require = {"exact_match": {"min": 0.6, "max_loss": 0}, "wer": {"max": 0.2, "max_loss": 0}}
    more = {"against": model, "max_new_tokens": 9, "batch_size": 5}
    found = bench.figures(model, data, {**require, "text_agreement": {"min": 1}}, **more)
    assert found["exact_match"] == pytest.approx(8 / 12, rel=1e-5)
    assert found["wer"] == pytest.approx(jiwer.wer([r["to"] for r in rows], texts), rel=1e-5)
    assert found["text_agreement"] == 1


@pytest.mark.torch
def test_a_quantized_generator_is_held_to_its_reference(bench: Bench) -> None:
    model = bench.model("t5", "text2text-generation")
    quantized = run_kind("int8", bench.new("int8"), {"mode": "dynamic"}, inputs={"from": model})
    data = bench.data([{"text": t} for t in TEXTS], model)
    found = bench.figures(quantized, data, {"text_agreement": {"min": 0}}, against=model, max_new_tokens=6)
    assert 0 <= found["text_agreement"] <= 1
    refused = bench.refusal(quantized, data, {"wer": {"max": 1}}, against=model, max_new_tokens=6)
    assert refused.title == "`wer` could not be measured"


@pytest.mark.torch
def test_a_label_that_is_no_text(bench: Bench) -> None:
    model = bench.model("t5", "text2text-generation")
    data = bench.data([{"text": TEXTS[0], "to": 3}], model, columns="text", label="to")
    assert bench.refusal(model, data, {"wer": {"max": 1}}, max_new_tokens=2).title == "a label is no text"


@pytest.mark.torch
def test_speech_is_scored_too(bench: Bench, tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "whisper", "whisper", task="automatic-speech-recognition")
    models.write_tokenizer(folder)
    checkpoint = run_kind("checkpoint", bench.new("checkpoint"), {}, sources={"path": folder})
    model = run_kind("onnx", bench.new("onnx"), {}, inputs={"from": checkpoint})
    features = np.random.default_rng(0).standard_normal((3, 8, 60)).astype("float32")
    data = bench.arrays(input_features=features, label=np.array(["the oil", "a", "the"]))
    found = bench.figures(model, data, {"wer": {"max": 100}, "exact_match": {"min": 0}}, max_new_tokens=6)
    assert found["wer"] > 0


@pytest.mark.torch
def test_what_is_generated_is_read_by_the_models_tokenizer(bench: Bench) -> None:
    model = bench.model("whisper", "automatic-speech-recognition")
    data = bench.arrays(input_features=np.zeros((1, 8, 60), "float32"), label=np.array(["oil"]))
    assert bench.refusal(model, data, {"wer": {"max": 1}}).title == "the model has no tokenizer to read its tokens by"


# --- labels of tensors ------------------------------------------------------------------------------------------


def test_tensors_have_labels_too(bench: Bench) -> None:
    model = graphs.conv(bench.folder / "conv")
    values = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("float32")
    (answers,) = sessions.open_session(model.model_path).run(None, {"x": values})
    right = answers.argmax(axis=1)
    data = bench.arrays(x=values, label=np.where(np.arange(4) < 3, right, (right + 1) % 10))
    assert samples.of(data).inputs == ("x",)
    assert bench.figures(model, data, {"accuracy": {"min": 0.7}})["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("arrays", "title"),
    [
        ({"x": np.zeros(2), "labels": np.zeros(2)}, "`rows.npz` has no array `label`"),
        ({"label": np.zeros(2)}, "`rows.npz` has labels and nothing that they are of"),
        ({"x": np.zeros(2), "label": np.array([1, np.nan])}, "the labels `label` are not all finite"),
        ({"x": np.zeros(2), "label": np.array([b"a", b"b"])}, "the labels `label` are neither numbers nor texts"),
    ],
)
def test_tensors_without_sound_labels(bench: Bench, arrays: dict[str, Any], title: str) -> None:
    with pytest.raises(ProblemError) as caught:
        bench.arrays(**arrays)
    assert caught.value.problems[0].title == title


# --- metrics of one's own ---------------------------------------------------------------------------------------

METRICS = """
import numpy as np


def width(outputs, labels):
    assert all(isinstance(each, np.ndarray) for each in outputs["last_hidden_state"])
    return np.float32(sum(each.shape[0] for each in outputs["last_hidden_state"]))


def labelled(outputs, labels):
    return sum(labels) / len(outputs["last_hidden_state"])


def breaks(outputs, labels):
    return labels["nothing"]


def word(outputs, labels):
    return "0.5"


def endless(outputs, labels):
    return float("inf")
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "own_metrics_of_tests.py"
    path.write_text(METRICS)
    return path


def named(function: str) -> dict[str, str]:
    return {"mine": f"own_metrics_of_tests:{function}"}


@pytest.mark.torch
class TestOwnMetrics:
    @pytest.fixture
    def model(self, tiny_onnx: Callable[[str], Artifact]) -> Artifact:
        return tiny_onnx("bert")

    @pytest.fixture
    def data(self, bench: Bench, model: Artifact) -> Artifact:
        return bench.data([{"text": t, "n": i} for i, t in enumerate(TEXTS)], model, columns="text", label="n")

    def test_it_gets_all_answers_without_padding(
        self, bench: Bench, model: Artifact, data: Artifact, code: Path
    ) -> None:
        functions = {**named("width"), "mean_label": "own_metrics_of_tests:labelled"}
        more = {"metrics": functions, "code": code, "against": model}
        found = bench.figures(model, data, {"mine": {"min": 1, "max_loss": 0}, "mean_label": {"max": 6}}, **more)
        assert found["mine"] == sum(len(text.split()) + 2 for text in TEXTS)
        assert found["mean_label"] == pytest.approx(np.mean(range(12)))

    def test_what_misses_is_told(self, bench: Bench, model: Artifact, data: Artifact, code: Path) -> None:
        found = bench.refusal(model, data, {"mine": {"min": 1e9}}, metrics=named("width"), code=code)
        assert found.title == "1 of 1 requirements did not hold"

    @pytest.mark.parametrize(
        ("function", "title"),
        [
            ("breaks", "the metric `own_metrics_of_tests:breaks` failed"),
            ("word", "the metric `own_metrics_of_tests:word` returned no number"),
            ("endless", "the metric `own_metrics_of_tests:endless` is not finite"),
            ("widht", "`own_metrics_of_tests` has no function `widht`"),
        ],
    )
    def test_one_that_does_not_work(
        self, bench: Bench, model: Artifact, data: Artifact, code: Path, function: str, title: str
    ) -> None:
        found = bench.refusal(model, data, {"mine": {"min": 1}}, metrics=named(function), code=code)
        assert found.title == title
        if function == "breaks":
            line = METRICS.splitlines().index('    return labels["nothing"]') + 1
            assert dict(found.facts)["at"] == f"own_metrics_of_tests.py:{line}"
        if function == "widht":
            assert found.hint == "did you mean `width`?"

    def test_one_that_is_called_as_another_figure(
        self, bench: Bench, model: Artifact, data: Artifact, code: Path
    ) -> None:
        metrics = {"cosine": "own_metrics_of_tests:width"}
        found = bench.refusal(model, data, {"cosine": {"min": 0}}, metrics=metrics, code=code)
        assert found.title == "`cosine` is a figure that there is already"


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"metrics": {"a": "m:f"}}, "`metrics` needs `code`"),
        ({"metrics": {"a": "m.f"}, "code": "m.py"}, "`m.f` is not `package.module:function`"),
        ({"metrics": {"a.b": "m:f"}, "code": "m.py"}, "`a.b` is no name of a metric"),
        ({"code": "m.py"}, "`code` is for `metrics`, and there are none"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], title: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=title.replace("`", ".").replace(".", r".")):
        msgspec.convert({"from": "m", "data": "d", "require": {"a": {"min": 0}}, **options}, kind.load("verified").Spec)


def test_the_packages_of_the_code_enter_the_key() -> None:
    given = {"from": "m", "data": "d", "require": {"a": {"min": 0}}, "metrics": {"a": "m:f"}, "code": "m.py"}
    spec = msgspec.convert({**given, "packages": ["sacrebleu"]}, kind.load("verified").Spec)
    assert "sacrebleu" in kind.used_tools(kind.load("verified"), spec)
