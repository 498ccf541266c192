"""verified: what is measured, that it passes through or refuses, and each requirement that cannot be evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from scipy import stats

from modelbuild import artifact
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import differences, samples, scores, sessions
from tests import graphs, models
from tests.kinds.run import Heard, run_kind


def verify(
    folder: Path,
    model: Artifact,
    data: Artifact,
    require: dict[str, Any],
    *,
    against: Artifact | None = None,
    **more: Any,
) -> Artifact:
    inputs = {"from": model, "data": data, **({"against": against} if against else {})}
    return run_kind("verified", folder, {"require": require, **more}, inputs=inputs)


def refusal(folder: Path, *arguments: Any, **more: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        verify(folder, *arguments, **more)
    (found,) = caught.value.problems
    assert not (folder / "out" / "descriptor.json").exists()
    return found


def text_of(found: Problem) -> str:
    return " ".join([found.title, *(f"{label}: {value}" for label, value in found.facts), found.hint or ""])


@pytest.fixture
def texts(tmp_path: Path, tiny_checkpoint: Callable[[str], Artifact]) -> Callable[..., Artifact]:
    """A dataset of twenty texts of several lengths, labelled in turn, for a tiny model of a type."""

    def make(model_type: str, labels: list[Any] | None = None, **options: Any) -> Artifact:
        labels = labels or ["zero", "one"]
        lines = [
            {
                "text": " ".join(["the cat sat on a mat and looked"] * (i % 4 + 1)) + f" {i}",
                "label": labels[i % len(labels)],
            }
            for i in range(20)
        ]
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder = tmp_path / f"texts-{model_type}-{len(list(tmp_path.iterdir()))}"
        inputs = {"tokenizer": tiny_checkpoint(model_type)}
        return run_kind("dataset", folder, {"columns": "text", **options}, inputs=inputs, sources={"path": path})

    return make


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny BERT with three classes."""
    folder = tmp_path_factory.mktemp("classifier")
    models.write_model(folder / "model", "bert", task="text-classification")
    checkpoint = run_kind("checkpoint", folder / "checkpoint", {}, sources={"path": folder / "model"})
    return run_kind("onnx", folder / "onnx", {"task": "text-classification"}, inputs={"from": checkpoint})


class TestFigures:
    def test_equal_answers(self) -> None:
        values = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        found = dict(differences.summary([differences.measure(values, values)]))
        assert found["cosine"] == pytest.approx(1)
        assert found["max_abs"] == found["l2"] == 0
        assert found["snr"] == found["psnr"] == differences.DECIBELS
        assert found["top1_agreement"] == found["top5_agreement"] == 1

    def test_they_are_what_their_definitions_say(self) -> None:
        a, b = np.array([1.0, -4.0, 2.0]), np.array([1.5, -4.0, 3.0])
        found = differences.measure(a, b)
        assert found.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
        assert (found.max_abs, found.mean_abs) == (1.0, 0.5)
        assert (found.max_rel, found.mean_rel) == (0.25, 0.125)
        assert found.l2 == pytest.approx(np.sqrt(1.25))
        assert found.snr == pytest.approx(10 * np.log10(21 / 1.25))
        assert found.psnr == pytest.approx(20 * np.log10(6 / np.sqrt(1.25 / 3)))
        assert found.top1 == 1

    def test_best_entries_are_compared_by_position(self) -> None:
        a = np.eye(8)[[0, 1, 2, 3]]
        b = np.eye(8)[[0, 1, 7, 7]] + 0.1 * np.eye(8)[[0, 1, 2, 4]] - 0.1 * np.eye(8)[[1, 2, 0, 3]]
        found = differences.measure(a, b)
        assert found.top1 == 0.5
        assert found.top5 == 0.75

    def test_silence_is_like_silence_and_like_nothing_else(self) -> None:
        zero, one = np.zeros(4), np.ones(4)
        assert differences.measure(zero, zero).cosine == 1
        assert differences.measure(zero, one).cosine == 0
        assert differences.measure(zero, one).snr == -differences.DECIBELS


@pytest.mark.torch
class TestTexts:
    def test_a_model_that_holds_passes_through(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        source = tiny_onnx("bert")
        quantized = run_kind("int8", tmp_path / "q", {"mode": "dynamic"}, inputs={"from": source})
        data = texts("bert")
        built = verify(tmp_path / "v", quantized, data, {"cosine": {"min": 0.5}}, against=source)
        assert built.model_path.read_bytes() == quantized.model_path.read_bytes()
        assert built.model_path.stat().st_ino == quantized.model_path.stat().st_ino
        assert 0.5 <= built.descriptor.metrics["cosine_min"] <= built.descriptor.metrics["cosine"] <= 1
        assert 0 < built.descriptor.metrics["mean_abs"] < built.descriptor.metrics["max_abs"]
        assert built.descriptor.components == quantized.descriptor.components
        assert all((built.path / name).is_file() for name in built.descriptor.tokenizer)
        assert json.loads((built.path / "verified.json").read_bytes())["samples"] == 20

    def test_the_figures_are_those_of_each_text_alone(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        """Batches mix lengths: padding must neither count nor change what is counted."""
        source = tiny_onnx("bert")
        quantized = run_kind("int8", tmp_path / "q", {"mode": "dynamic"}, inputs={"from": source})
        alone, together = (
            verify(
                tmp_path / f"v{size}", quantized, texts("bert"), {"cosine": {"min": 0}}, against=source, batch_size=size
            )
            for size in (1, 7)
        )
        for name in ("cosine", "cosine_min", "mean_abs"):
            assert together.descriptor.metrics[name] == pytest.approx(alone.descriptor.metrics[name], rel=0.1)

    def test_another_tolerance_makes_the_same_artifact(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        source, data = tiny_onnx("bert"), texts("bert")
        a, b = (
            verify(tmp_path / str(n), source, data, {"cosine": {"min": least}}, against=source)
            for n, least in enumerate((0.1, 0.9))
        )
        assert {p.name: p.read_bytes() for p in a.path.iterdir() if p.is_file()} == {
            p.name: p.read_bytes() for p in b.path.iterdir() if p.is_file()
        }

    def test_what_misses_is_told_with_figures_and_the_worst_samples(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        source = tiny_onnx("bert")
        quantized = run_kind("int8", tmp_path / "q", {"mode": "dynamic"}, inputs={"from": source})
        require = {"cosine": {"min": 0.5}, "max_abs": {"max": 1e-9}, "last_hidden_state.l2": {"max": 1e-9}}
        found = refusal(tmp_path / "v", quantized, texts("bert"), require, against=source)
        assert found.title == "2 of 3 requirements did not hold"
        said = text_of(found)
        assert "at most 1e-09" in said
        assert "last_hidden_state.l2" in said
        assert "worst: sample " in said

    def test_a_classifier_is_scored_beside_its_reference(
        self, tmp_path: Path, classifier: Artifact, texts: Callable[..., Artifact]
    ) -> None:
        data = texts("bert", labels=["joy", "surprise"], label="label")
        require = {"accuracy": {"min": 0.0, "max_loss": 0.01}, "f1": {"max": 1}, "top1_agreement": {"min": 1}}
        built = verify(tmp_path / "v", classifier, data, require, against=classifier)
        session = sessions.open_session(classifier.model_path)
        rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
        names = [i.name for i in session.get_inputs()]
        right = [
            models.LABELS[int(session.run(None, feeds)[0].argmax())] == row["label"]
            for feeds, row in zip(samples.of(data).batches(1, names=names), rows, strict=True)
        ]
        assert built.descriptor.metrics["accuracy"] == pytest.approx(np.mean(right))

    def test_labels_must_be_the_models(
        self, tmp_path: Path, classifier: Artifact, texts: Callable[..., Artifact]
    ) -> None:
        data = texts("bert", labels=["good", "bad"], label="label")
        found = refusal(tmp_path / "v", classifier, data, {"accuracy": {"min": 0.1}})
        assert found.title == "a label is none of the model's classes"

    @pytest.mark.parametrize(
        ("require", "title"),
        [
            ({"accuracy": {"min": 0.5}}, "`accuracy` could not be measured"),
            ({"perplexity": {"max": 5}}, "`perplexity` could not be measured"),
            ({"cosinus": {"min": 0.5}}, "`require` names no figure that there is: `cosinus`"),
            (
                {"cosine": {"max_loss": 0.1}},
                "`max_loss` is for scores, and `cosine` compares with the reference already",
            ),
        ],
    )
    def test_a_requirement_that_cannot_be_evaluated_is_a_failure(
        self,
        tmp_path: Path,
        tiny_onnx: Callable[[str], Artifact],
        texts: Callable[..., Artifact],
        require: dict[str, Any],
        title: str,
    ) -> None:
        source = tiny_onnx("bert")
        assert refusal(tmp_path / "v", source, texts("bert"), require, against=source).title == title

    def test_a_comparison_needs_a_reference(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        found = refusal(tmp_path / "v", tiny_onnx("bert"), texts("bert"), {"cosine": {"min": 0.5}})
        assert "against" in text_of(found)

    def test_a_tokenizer_of_another_model(self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact]) -> None:
        """It has as many tokens as the model's own, and others."""
        folder = tmp_path / "other" / "out"
        models.write_tokenizer(folder, words=(*models.WORDS[1:], "zebra"))
        artifact.write(folder, artifact.Descriptor(format="safetensors", tokenizer=("tokenizer.json",)))
        path = tmp_path / "texts.txt"
        path.write_text("the people of the water\n")
        inputs = {"tokenizer": artifact.read(folder)}
        data = run_kind("dataset", tmp_path / "data", {}, inputs=inputs, sources={"path": path})
        source = tiny_onnx("bert")
        found = refusal(tmp_path / "v", source, data, {"cosine": {"min": 0.5}}, against=source)
        assert found.title == "the dataset was tokenized by another tokenizer than the model's"
        assert dict(found.facts)["dataset"] == f"{models.VOCAB_SIZE} others"

    def test_an_unknown_figure_is_suggested(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        source = tiny_onnx("bert")
        found = refusal(tmp_path / "v", source, texts("bert"), {"cosinus": {"min": 0.5}}, against=source)
        assert found.hint == "did you mean `cosine`?"

    def test_fewer_samples_than_asked(
        self, tmp_path: Path, tiny_onnx: Callable[[str], Artifact], texts: Callable[..., Artifact]
    ) -> None:
        source = tiny_onnx("bert")
        found = refusal(tmp_path / "v", source, texts("bert"), {"cosine": {"min": 0}}, against=source, samples=21)
        assert text_of(found).startswith("the dataset has fewer samples than asked for has: 20 asked: 21")


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Artifact]:
    """A dataset of arrays."""

    def make(**arrays: Any) -> Artifact:
        path = tmp_path / "rows.npz"
        np.savez(path, **arrays)
        folder = tmp_path / f"rows-{len(list(tmp_path.iterdir()))}"
        return run_kind("dataset", folder, {"label": "label"} if "label" in arrays else {}, sources={"path": path})

    return make


class TestTensors:
    def test_a_figure_that_is_no_number_fails_where_it_is_asked_for_and_is_left_out_elsewhere(
        self, tmp_path: Path, rows: Callable[..., Artifact]
    ) -> None:
        """Labels that never change correlate with nothing."""
        node, ends = helper.make_node("MatMul", ["x", "w"], ["y"]), (("x", 4), ("y", 1))
        sides = [[(name, graphs.FLOAT, ["batch", width])] for name, width in ends]
        model = graphs.save(tmp_path / "onnx", [node], *sides, {"w": graphs.weights(4, 1)})
        data = rows(x=np.eye(4, dtype="float32"), label=np.ones(4))
        built = verify(tmp_path / "a", model, data, {"cosine": {"min": 1}}, against=model)
        assert "pearson" not in built.descriptor.metrics
        assert refusal(tmp_path / "b", model, data, {"pearson": {"min": 0}}).title == "`pearson` is not a number"

    def test_wrong_columns(self, tmp_path: Path, rows: Callable[..., Artifact]) -> None:
        model = graphs.conv(tmp_path / "onnx")
        data = rows(pictures=np.zeros((4, 3, 8, 8), "float32"))
        found = refusal(tmp_path / "v", model, data, {"cosine": {"min": 0}}, against=model)
        assert "has no values for the input" in found.title

    def test_answers_that_are_not_finite(self, tmp_path: Path, rows: Callable[..., Artifact]) -> None:
        model = graphs.conv(tmp_path / "onnx")
        (tensor,) = model.descriptor.model().inputs
        shape = tuple(d if isinstance(d, int) else 4 for d in tensor.shape)
        values = np.full(shape, np.nan, "float32")
        found = refusal(tmp_path / "v", model, rows(**{tensor.name: values}), {"cosine": {"min": 0}}, against=model)
        assert "an answer is not finite" in found.title

    def test_a_dataset_is_no_model(self, tmp_path: Path, rows: Callable[..., Artifact]) -> None:
        data = rows(x=np.zeros((4, 3), "float32"))
        found = refusal(tmp_path / "v", data, data, {"cosine": {"min": 0}}, against=data)
        assert found.title == "a model to compare is neither ONNX nor a plan"


def test_similarities_are_correlated_by_rank(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((20, 8))
    b = a + 0.2 * random.standard_normal((20, 8))

    def pairs(table: Any) -> Any:
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        return [unit[i] @ unit[j] for i in range(20) for j in range(i + 1, 20)]

    assert scores.of_similarity(a, b) == pytest.approx(stats.spearmanr(pairs(a), pairs(b)).statistic)


@pytest.mark.torch
def test_minilm_in_int8_is_known_to_be_good(minilm: Artifact, tmp_path: Path) -> None:
    heard = Heard()
    data = {}
    for name in ("sentences", "heldout"):
        path = Path(__file__).parents[2] / "recipes" / "data" / f"{name}.jsonl"
        inputs = {"tokenizer": minilm}
        data[name] = run_kind("dataset", tmp_path / name, {"max_length": 128}, inputs=inputs, sources={"path": path})
    exported = run_kind("onnx", tmp_path / "onnx", {}, inputs={"from": minilm})
    quantized = run_kind("int8", tmp_path / "int8", {}, inputs={"from": exported, "calibration": data["sentences"]})
    built = run_kind(
        "verified",
        tmp_path / "v",
        {"require": {"cosine": {"min": 0.998}, "similarity_spearman": {"min": 0.98}}},
        inputs={"from": quantized, "against": exported, "data": data["heldout"]},
        heard=heard,
    )
    assert built.descriptor.metrics["cosine"] < 1
    assert (
        json.loads((built.path / "verified.json").read_bytes())["worst"][0]["cosine"]
        < built.descriptor.metrics["cosine"]
    )
    assert any("2 requirements hold" in line for line in heard.logs)
