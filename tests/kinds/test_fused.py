"""Fused: what becomes one operator for which provider, equality with the input, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from modelbuild import artifact, kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import agreement, onnx_files, sessions
from tests import models
from tests.kinds.run import Heard, run_kind

Make = Callable[[str], Artifact]


def fuse(folder: Path, source: Artifact, heard: Heard | None = None, **values: Any) -> Artifact:
    return run_kind("fused", folder, values, inputs={"from": source}, heard=heard)


def refusal(folder: Path, source: Artifact, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        fuse(folder, source, **values)
    (found,) = caught.value.problems
    return found


def operators(built: Artifact) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(built.model_path).graph.node)


def encoder(folder: Path) -> Artifact:
    """A graph without anything to fuse."""
    models.write_onnx(folder / "model.onnx")
    component = onnx_files.component(onnx_files.load(folder / "model.onnx"))
    artifact.write(folder, Descriptor(format="onnx", components={"model": component}))
    return artifact.read(folder)


@pytest.mark.torch
class TestFusing:
    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra"])
    def test_for_cpu_attention_and_gelu_become_one_operator(
        self, tiny_onnx: Make, tmp_path: Path, model_type: str
    ) -> None:
        heard = Heard()
        built = fuse(tmp_path, tiny_onnx(model_type), heard)
        found = operators(built)
        assert found["Attention"] == 2
        assert found["BiasGelu"] == 2
        assert found["Softmax"] == 0
        assert built.descriptor.settings["fused"] == {"Attention": 2, "BiasGelu": 2}
        assert heard.logs[0].startswith("fused 2 Attention, 2 BiasGelu; ")

    def test_for_cpu_layer_norms_stay_apart_and_residuals_are_sums(self, tiny_onnx: Make, tmp_path: Path) -> None:
        found = operators(fuse(tmp_path, tiny_onnx("bert")))
        assert found["SkipLayerNormalization"] == 0
        assert found["EmbedLayerNormalization"] == 0
        assert found["LayerNormalization"] == 5
        assert found["Sum"] == 5

    def test_for_cuda_everything_is_fused(self, tiny_onnx: Make, tmp_path: Path) -> None:
        built = fuse(tmp_path, tiny_onnx("bert"), provider="cuda")
        assert built.descriptor.settings["fused"] == {
            "Attention": 2,
            "BiasGelu": 2,
            "EmbedLayerNormalization": 1,
            "SkipLayerNormalization": 4,
        }
        assert built.descriptor.settings["provider"] == "cuda"

    @pytest.mark.parametrize("provider", ["cpu", "cuda"])
    def test_computes_the_same_with_padding_on_both_sides(self, tiny_onnx: Make, tmp_path: Path, provider: str) -> None:
        source = tiny_onnx("bert")
        built = fuse(tmp_path, source, provider=provider)
        names = {name for name, _ in agreement.cases(source.descriptor.model().inputs)}
        assert {"1x1", "1x7", "3x33, padded left", "3x33, padded right"} <= names
        pair = [sessions.open_session(a.model_path) for a in (source, built)]
        assert agreement.largest_difference(*pair, source.descriptor.model().inputs).relative < 1e-5

    def test_mask_index_is_checked_for_padding_on_the_right_only(self, tiny_onnx: Make, tmp_path: Path) -> None:
        source = tiny_onnx("bert")
        built = fuse(tmp_path, source, mask_index=True)
        pair = [sessions.open_session(a.model_path) for a in (source, built)]
        inputs = source.descriptor.model().inputs
        assert agreement.largest_difference(*pair, inputs, pad_left=False).relative < 1e-5
        assert agreement.largest_difference(*pair, inputs).relative > 1e-3

    def test_fusions_can_be_left_out(self, tiny_onnx: Make, tmp_path: Path) -> None:
        built = fuse(tmp_path, tiny_onnx("bert"), disable=["bias_gelu"])
        assert built.descriptor.settings["fused"] == {"Attention": 2, "Gelu": 2}

    def test_attention_may_stay_where_the_recipe_says_so(self, tiny_onnx: Make, tmp_path: Path) -> None:
        built = fuse(tmp_path, tiny_onnx("bert"), disable=["attention"], require=[])
        assert built.descriptor.settings["fused"] == {"BiasGelu": 2}

    def test_takes_tokenizer_task_and_settings_along(self, tiny_onnx: Make, tmp_path: Path) -> None:
        source = tiny_onnx("bert")
        built = fuse(tmp_path, source)
        assert built.descriptor.task == source.descriptor.task
        assert built.descriptor.tokenizer == source.descriptor.tokenizer != ()
        assert all((built.path / name).is_file() for name in built.descriptor.tokenizer)
        assert source.descriptor.settings.items() <= built.descriptor.settings.items()
        assert built.descriptor.model().outputs == source.descriptor.model().outputs

    def test_twice_gives_the_same_bytes(self, tiny_onnx: Make, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        first, second = (fuse(tmp_path / name, tiny_onnx("bert")) for name in ("a", "b"))
        assert first.model_path.read_bytes() == second.model_path.read_bytes()

    def test_imports_only_the_operator_domains_it_uses(self, tiny_onnx: Make, tmp_path: Path) -> None:
        model = onnx.load(fuse(tmp_path, tiny_onnx("bert")).model_path)
        assert set(onnx_files.opsets(model)) == {"ai.onnx", "com.microsoft"}


@pytest.mark.torch
class TestRefusing:
    def test_attention_that_is_not_found(self, tiny_onnx: Make, tmp_path: Path) -> None:
        """The keys of one layer pass through operators of no known attention."""
        model = onnx.load(tiny_onnx("bert").model_path)
        scores = next(n for n in model.graph.node if n.op_type == "MatMul" and "self/MatMul" in n.name)
        place = list(model.graph.node).index(scores)
        for i, name in enumerate(("back", "forth")):
            model.graph.node.insert(place + i, onnx.helper.make_node("Neg", [scores.input[1]], [name], name=name))
            scores = model.graph.node[place + i + 1]
            scores.input[1] = name
        onnx.save(model, tmp_path / "odd.onnx")
        source = run_kind("onnx", tmp_path / "onnx", {}, sources={"path": tmp_path / "odd.onnx"})
        told = refusal(tmp_path / "fused", source, model_type="bert")
        assert told.title == "1 of 2 attentions could not be fused"
        assert told.hint is not None
        assert "attn_implementation: eager" in told.hint

    def test_a_model_that_is_already_fused(self, tiny_onnx: Make, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        told = refusal(tmp_path / "b", fuse(tmp_path / "a", tiny_onnx("bert")))
        assert told.title == "the model is already fused"
        assert ("operators", "Attention, BiasGelu") in told.facts

    def test_a_quantized_model(self, tiny_onnx: Make, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        quantized = run_kind("int8", tmp_path / "a", {}, inputs={"from": tiny_onnx("bert")})
        assert refusal(tmp_path / "b", quantized).title == "the model is already quantized"

    def test_an_unknown_architecture(self, tiny_onnx: Make, tmp_path: Path) -> None:
        told = refusal(tmp_path, tiny_onnx("bert"), model_type="robertta")
        assert told.title == "ONNX Runtime's optimizer has no patterns for the architecture `robertta`"
        assert told.hint == "did you mean `roberta`?"


def test_a_graph_that_is_no_transformer_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, encoder(tmp_path / "encoder"))
    assert told.title.startswith("nothing could be fused")
    assert told.hint == "this is not a transformer's graph: leave out the `fused` target"


def test_a_checkpoint_is_refused(tokenizer_artifact: Artifact, tmp_path: Path) -> None:
    assert refusal(tmp_path, tokenizer_artifact).title == "`fused` needs an ONNX model"


def test_a_corrupt_file_is_a_problem(tmp_path: Path) -> None:
    broken = encoder(tmp_path / "encoder")
    broken.model_path.write_bytes(broken.model_path.read_bytes()[:100])
    assert "not a readable ONNX file" in refusal(tmp_path, broken).title


@pytest.mark.torch
def test_patterns_that_drop_an_input_are_a_problem(tiny_onnx: Make, tmp_path: Path) -> None:
    told = refusal(tmp_path, tiny_onnx("bert"), model_type="vit")
    assert told.title == "the fused model has lost the input `attention_mask`"


@pytest.mark.parametrize(
    ("values", "field"),
    [({"disable": ["attention"]}, "disable"), ({"heads": 12}, "heads"), ({"hidden_size": 32}, "hidden_size")],
)
def test_options_that_do_not_fit_together(values: dict[str, Any], field: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"from": "onnx", **values}, kind.load("fused").Spec)
    assert isinstance(caught.value.__cause__, kind.SpecError)
    assert caught.value.__cause__.field == field
