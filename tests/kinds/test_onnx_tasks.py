"""ONNX for each task: equal to transformers' own model at other shapes, described so that a server can run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild import artifact
from modelbuild.artifact import Artifact, Descriptor, Tensor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import onnx_files, sessions
from tests import models
from tests.kinds import greedy
from tests.kinds.run import Heard, run_kind

Make = Callable[[str, str], Artifact]
Folder = Callable[[str, str], Path]
B, S = "batch", "sequence"
TEXT_TASKS = {
    "feature-extraction": ("AutoModel", {"last_hidden_state": (B, S, 32)}),
    "text-classification": ("AutoModelForSequenceClassification", {"logits": (B, 3)}),
    "token-classification": ("AutoModelForTokenClassification", {"logits": (B, S, 3)}),
    "question-answering": ("AutoModelForQuestionAnswering", {"start_logits": (B, S), "end_logits": (B, S)}),
    "fill-mask": ("AutoModelForMaskedLM", {"logits": (B, S, models.VOCAB_SIZE)}),
}


def export(place: Path, source: Artifact, **options: Any) -> Artifact:
    return run_kind("onnx", place, options, inputs={"from": source})


def refusal(run: Callable[..., Artifact], *arguments: Any, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        run(*arguments, **values)
    (found,) = caught.value.problems
    return found


def loaded(folder: Path, auto: str) -> Any:
    """transformers' own model, with its default attention."""
    import transformers

    return getattr(transformers, auto).from_pretrained(folder).eval()


def padded_texts(batch: int, length: int, *, left: bool = False) -> dict[str, Any]:
    """Token ids and mask; row i has 2 i tokens of padding."""
    ids = np.random.default_rng(length).integers(5, models.VOCAB_SIZE, (batch, length))
    mask = np.ones_like(ids)
    for row in range(batch):
        mask[row, length - 2 * row :] = 0
    mask = np.ascontiguousarray(mask[:, ::-1]) if left else mask
    return {"input_ids": ids * mask, "attention_mask": mask}


def tensors(feeds: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {n: torch.from_numpy(v) for n, v in feeds.items()}


@pytest.mark.torch
class TestTexts:
    @pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "modernbert"])
    @pytest.mark.parametrize("task", TEXT_TASKS)
    def test_equal_the_model_at_other_shapes_with_padding(
        self, tmp_path: Path, folder_for: Folder, checkpoint_for: Make, task: str, model_type: str
    ) -> None:
        import torch

        auto, outputs = TEXT_TASKS[task]
        made = export(tmp_path, checkpoint_for(model_type, task))
        assert made.descriptor.task == task
        assert made.descriptor.model().outputs == tuple(Tensor(n, "float32", shape) for n, shape in outputs.items())
        assert {(t.dtype, t.shape) for t in made.descriptor.model().inputs} == {("int64", (B, S))}
        model, session = loaded(folder_for(model_type, task), auto), sessions.open_session(made.model_path)
        names = {t.name for t in made.descriptor.model().inputs}
        for shape in ((1, 3), (4, 21), (2, 60)):
            texts = padded_texts(*shape)
            feeds = texts | ({"token_type_ids": np.zeros_like(texts["input_ids"])} if "token_type_ids" in names else {})
            with torch.inference_mode():
                expected = model(**tensors(feeds))
            for name, found in zip(outputs, session.run(list(outputs), feeds), strict=True):
                kept = texts["attention_mask"] == 1 if outputs[name][1:2] == (S,) else slice(None)
                np.testing.assert_allclose(found[kept], expected[name].numpy()[kept], atol=5e-5)

    @pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
    def test_both_exporters_describe_the_same(self, tmp_path: Path, checkpoint_for: Make, exporter: str) -> None:
        made = export(tmp_path, checkpoint_for("bert", "token-classification"), exporter=exporter)
        assert made.descriptor.model().outputs == (Tensor("logits", "float32", (B, S, 3)),)

    def test_carry_the_labels(self, tmp_path: Path, checkpoint_for: Make) -> None:
        made = export(tmp_path, checkpoint_for("bert", "text-classification"))
        assert made.descriptor.settings["labels"] == list(models.LABELS)

    def test_take_labels_from_the_recipe(self, tmp_path: Path, checkpoint_for: Make) -> None:
        made = export(tmp_path, checkpoint_for("bert", "text-classification"), labels=["x", "y", "z"])
        assert made.descriptor.settings["labels"] == ["x", "y", "z"]

    def test_any_architecture_with_the_head_is_tried(self, tmp_path: Path) -> None:
        """Of a model type that no table of ours names."""
        import transformers

        small = {**models.ENCODER, "attention_window": 8}
        transformers.MegatronBertModel(transformers.MegatronBertConfig(**small)).save_pretrained(tmp_path / "model")
        source = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": tmp_path / "model"})
        assert export(tmp_path / "onnx", source).descriptor.task == "feature-extraction"


@pytest.mark.torch
class TestImages:
    @pytest.mark.parametrize("model_type", ["vit", "resnet"])
    def test_equal_the_model_at_other_batches(
        self, tmp_path: Path, folder_for: Folder, checkpoint_for: Make, model_type: str
    ) -> None:
        import torch

        made = export(tmp_path, checkpoint_for(model_type, "image-classification"))
        side = (16, 16) if model_type == "vit" else ("height", "width")
        assert made.descriptor.model().inputs == (Tensor("pixel_values", "float32", (B, 3, *side)),)
        assert made.descriptor.model().outputs == (Tensor("logits", "float32", (B, 3)),)
        model = loaded(folder_for(model_type, "image-classification"), "AutoModelForImageClassification")
        pixels = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels)).logits.numpy()
        (found,) = sessions.open_session(made.model_path).run(None, {"pixel_values": pixels})
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_say_what_to_do_with_pixels(self, tmp_path: Path, checkpoint_for: Make) -> None:
        settings = export(tmp_path, checkpoint_for("vit", "image-classification")).descriptor.settings
        assert settings["labels"] == list(models.LABELS)
        assert settings["image"] == {
            **{"height": 16, "width": 16, "resize": {"height": 16, "width": 16}, "resample": 2},
            **{"rescale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3},
        }

    def test_features_of_patches(self, tmp_path: Path, checkpoint_for: Make) -> None:
        made = export(tmp_path, checkpoint_for("vit", "image-feature-extraction"))
        assert made.descriptor.task == "image-feature-extraction"
        assert made.descriptor.model().outputs == (Tensor("last_hidden_state", "float32", (B, 5, 32)),)


@pytest.mark.torch
class TestGeneration:
    @pytest.mark.parametrize("use_cache", [True, False])
    @pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral"])
    def test_of_left_padded_prompts_is_what_generate_gives(
        self, tmp_path: Path, folder_for: Folder, checkpoint_for: Make, model_type: str, use_cache: bool
    ) -> None:
        made = export(tmp_path, checkpoint_for(model_type, "text-generation"), use_cache=use_cache)
        prompts = padded_texts(3, 8, left=True)
        model = loaded(folder_for(model_type, "text-generation"), "AutoModelForCausalLM")
        expected = model.generate(**tensors(prompts), do_sample=False, max_new_tokens=12)[:, 8:].numpy()

        found = greedy.generate(made, prompts, 12)

        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) > 2, "a model that repeats itself tells little"

    @pytest.mark.parametrize("use_cache", [True, False])
    @pytest.mark.parametrize("model_type", ["t5", "bart"])
    def test_from_padded_texts_is_what_generate_gives(
        self, tmp_path: Path, folder_for: Folder, checkpoint_for: Make, model_type: str, use_cache: bool
    ) -> None:
        made = export(tmp_path, checkpoint_for(model_type, "text2text-generation"), use_cache=use_cache)
        sources = padded_texts(3, 9)
        model = loaded(folder_for(model_type, "text2text-generation"), "AutoModelForSeq2SeqLM")
        expected = model.generate(**tensors(sources), do_sample=False, max_new_tokens=12)[:, 1:].numpy()

        found = greedy.generate(made, sources, 12)

        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) > 2, "a model that repeats itself tells little"

    def test_from_speech_is_what_the_model_gives(
        self, tmp_path: Path, folder_for: Folder, checkpoint_for: Make
    ) -> None:
        """Whisper's own `generate` works on timestamps and languages: here its forward, token by token."""
        import torch

        made = export(tmp_path, checkpoint_for("whisper", "automatic-speech-recognition"))
        features = {"input_features": np.random.default_rng(0).standard_normal((2, 8, 60)).astype(np.float32)}
        model = loaded(folder_for("whisper", "automatic-speech-recognition"), "AutoModelForSpeechSeq2Seq")
        tokens = torch.zeros(2, 1, dtype=torch.long)
        for _ in range(10):
            with torch.inference_mode():
                logits = model(**tensors(features), decoder_input_ids=tokens).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)

        found = greedy.generate(made, features, 10)

        ends = [(row == 3).argmax() + 1 if (row == 3).any() else len(row) for row in found]
        for row, end in enumerate(ends):
            np.testing.assert_array_equal(found[row, :end], tokens[row, 1 : 1 + end].numpy())

    def test_is_one_graph_for_prompt_and_tokens(self, tmp_path: Path, checkpoint_for: Make) -> None:
        made = export(tmp_path, checkpoint_for("llama", "text-generation")).descriptor
        past, total = "past_sequence", "past_sequence + sequence"
        cache = [f"{i}.{part}" for i in (0, 1) for part in ("key", "value")]
        assert made.model().inputs == (
            Tensor("input_ids", "int64", (B, S)),
            Tensor("attention_mask", "int64", (B, total)),
            *(Tensor(f"past_key_values.{n}", "float32", (B, 2, past, 8)) for n in cache),
        )
        assert made.model().outputs == (
            Tensor("logits", "float32", (B, S, models.VOCAB_SIZE)),
            *(Tensor(f"present.{n}", "float32", (B, 2, total, 8)) for n in cache),
        )
        assert made.settings["generation"] == {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}

    @pytest.mark.parametrize(
        ("model_type", "task"), [("t5", "text2text-generation"), ("whisper", "automatic-speech-recognition")]
    )
    def test_keeps_the_decoder_s_weights_out_of_the_encoder(
        self, tmp_path: Path, checkpoint_for: Make, model_type: str, task: str
    ) -> None:
        made = export(tmp_path, checkpoint_for(model_type, task))
        names = {t.name for t in onnx_files.load(made.path / "encoder.onnx").graph.initializer}
        decoders = {n for n in names if "decoder" in n and "EncDec" not in n and "encoder_attn" not in n}
        assert decoders == set()

    def test_from_text_is_an_encoder_and_one_decoder(self, tmp_path: Path, checkpoint_for: Make) -> None:
        made = export(tmp_path, checkpoint_for("t5", "text2text-generation")).descriptor
        assert {n: c.file for n, c in made.components.items()} == {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
        encoder, decoder = made.components["encoder"], made.components["decoder"]
        source = "source_sequence"
        assert encoder.outputs[0] == Tensor("present.0.encoder.key", "float32", (B, 2, source, 16))
        given = {t.name: t.shape for t in decoder.inputs}
        assert given["encoder_attention_mask"] == (B, source)
        assert given["past_key_values.1.encoder.value"] == (B, 2, source, 16)
        assert given["past_key_values.1.decoder.value"] == (B, 2, "past_sequence", 16)
        assert made.settings["generation"] == {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0}

    def test_by_dynamo_is_equal_too(self, tmp_path: Path, checkpoint_for: Make) -> None:
        source = checkpoint_for("gpt2", "text-generation")
        one, other = (export(tmp_path / e, source, exporter=e) for e in ("torchscript", "dynamo"))
        assert one.descriptor.model() == other.descriptor.model()
        prompts = padded_texts(2, 5, left=True)
        np.testing.assert_array_equal(greedy.generate(one, prompts, 6), greedy.generate(other, prompts, 6))


@pytest.mark.torch
class TestRefused:
    def test_an_architecture_without_the_head(self, tmp_path: Path, checkpoint_for: Make) -> None:
        found = refusal(export, tmp_path, checkpoint_for("t5", "text2text-generation"), task="fill-mask")
        assert found.title == "the architecture `t5` is not supported for `fill-mask`"
        facts = dict(found.facts)
        assert facts["supported"].startswith("albert, bert,")
        assert "text2text-generation" in facts["tasks of this architecture"]

    def test_an_encoder_for_generation(self, tmp_path: Path, checkpoint_for: Make) -> None:
        found = refusal(export, tmp_path, checkpoint_for("modernbert", "fill-mask"), task="text-generation")
        assert found.title == "the architecture `modernbert` is not supported for `text-generation`"

    def test_a_checkpoint_without_the_head_s_weights(self, tmp_path: Path, checkpoint_for: Make) -> None:
        source = checkpoint_for("bert", "fill-mask")
        found = refusal(export, tmp_path, source, task="text-classification", labels=["a", "b"])
        assert found.title == "the checkpoint lacks weights of `BertForSequenceClassification`"

    def test_missing_labels(self, tmp_path: Path, folder_for: Folder) -> None:
        nameless = tmp_path / "model"
        nameless.mkdir()
        for file in folder_for("bert", "text-classification").iterdir():
            (nameless / file.name).write_bytes(file.read_bytes())
        config = json.loads((nameless / "config.json").read_text())
        del config["id2label"]
        (nameless / "config.json").write_text(json.dumps(config))
        source = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": nameless})
        found = refusal(export, tmp_path / "onnx", source)
        assert found.title == "the checkpoint does not name its labels"
        assert found.hint is not None
        assert found.hint.startswith("say `labels: [...]`")

    def test_other_labels_than_outputs(self, tmp_path: Path, checkpoint_for: Make) -> None:
        found = refusal(export, tmp_path, checkpoint_for("bert", "text-classification"), labels=["a", "b"])
        assert found.title == "2 labels are given for 3 outputs"

    def test_a_cache_for_a_task_without(self, tmp_path: Path, checkpoint_for: Make) -> None:
        found = refusal(export, tmp_path, checkpoint_for("bert", "fill-mask"), use_cache=True)
        assert found.title == "`fill-mask` has no key-value cache"

    def test_a_state_that_is_no_cache(self, tmp_path: Path) -> None:
        import transformers

        small = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": models.VOCAB_SIZE, "state_size": 4}
        config = transformers.MambaConfig(**small, pad_token_id=0, bos_token_id=2, eos_token_id=3)
        transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")
        source = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": tmp_path / "model"})
        found = refusal(export, tmp_path / "onnx", source)
        assert found.title == "the model keeps something else than a key-value cache"

    def test_speech_of_another_form(self, tmp_path: Path) -> None:
        import transformers

        small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0}
        small |= {
            f"{part}_num_{what}": 2 for part in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")
        }
        transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**small)).save_pretrained(
            tmp_path / "model"
        )
        source = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": tmp_path / "model"})
        found = refusal(export, tmp_path / "onnx", source)
        assert found.title == "the speech of `MoonshineForConditionalGeneration` is not of a form that can be exported"

    def test_texts_for_an_image_model(self, tmp_path: Path, checkpoint_for: Make) -> None:
        images = export(tmp_path / "onnx", checkpoint_for("vit", "image-classification"))
        (tmp_path / "texts.txt").write_text("the people\n")
        found = refusal(
            run_kind, "dataset", tmp_path / "dataset", {},
            inputs={"tokenizer": images}, sources={"path": tmp_path / "texts.txt"},
        )  # fmt: skip
        assert found.title == "the artifact that `tokenizer` names has no `tokenizer.json`"

    def test_texts_to_calibrate_an_image_model(self, tmp_path: Path, checkpoint_for: Make) -> None:
        images = export(tmp_path / "onnx", checkpoint_for("vit", "image-classification"))
        (tmp_path / "texts.txt").write_text("the people\n")
        texts = run_kind(
            "dataset", tmp_path / "dataset", {},
            inputs={"tokenizer": checkpoint_for("bert", "fill-mask")}, sources={"path": tmp_path / "texts.txt"},
        )  # fmt: skip
        found = refusal(run_kind, "int8", tmp_path / "int8", {}, inputs={"from": images, "calibration": texts})
        assert found.title == "the calibration dataset has no values for the input `pixel_values`"


@pytest.mark.torch
class TestTaskByDefault:
    @pytest.mark.parametrize(
        ("architecture", "model_type", "task"),
        [
            ("BertModel", "bert", "feature-extraction"),
            ("BertForMaskedLM", "bert", "fill-mask"),
            ("GPT2LMHeadModel", "gpt2", "text-generation"),
            ("MarianMTModel", "marian", "text2text-generation"),
            ("T5ForConditionalGeneration", "t5", "text2text-generation"),
            ("T5EncoderModel", "t5", "feature-extraction"),
            ("WhisperForConditionalGeneration", "whisper", "automatic-speech-recognition"),
            ("ViTModel", "vit", "image-feature-extraction"),
            ("ViTForImageClassification", "vit", "image-classification"),
        ],
    )
    def test_is_the_architecture_s(self, architecture: str, model_type: str, task: str) -> None:
        from modelbuild.lib.architectures import task_of

        assert task_of({"architecture": architecture, "model_type": model_type}) == task

    def test_is_embeddings_where_the_checkpoint_pools(self) -> None:
        from modelbuild.lib.architectures import task_of

        settings = {"architecture": "MPNetForMaskedLM", "model_type": "mpnet", "pooling": "mean"}
        assert task_of(settings) == "feature-extraction"

    def test_is_asked_for_where_nothing_says_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        artifact.write(folder, Descriptor(format="safetensors", settings={"model_type": "bert"}))
        found = refusal(export, tmp_path / "onnx", artifact.read(folder))
        assert found.title == "the checkpoint does not say what it is for"
        assert found.hint is not None
        assert "fill-mask" in found.hint

    def test_says_where_it_was_compared(self, tmp_path: Path, checkpoint_for: Make) -> None:
        heard = Heard()
        run_kind("onnx", tmp_path, {}, inputs={"from": checkpoint_for("gpt2", "text-generation")}, heard=heard)
        assert "2x1 after 9, padded left" in heard.logs[-1]
