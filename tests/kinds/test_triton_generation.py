"""Kind `triton-repo` of models that generate: what the repository holds, and what cannot work is said at build time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelbuild import artifact
from modelbuild.artifact import Artifact, Component, Descriptor, Tensor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import triton_lint, triton_schema
from tests import golden
from tests.kinds.run import Heard, run_kind
from tests.serving import generators

GOLDEN = Path(__file__).parent.parent / "golden" / "triton"
Change = Callable[[Descriptor], Descriptor]


@pytest.fixture(scope="module")
def recital(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A hand-made decoder with its tokenizer, made without torch."""
    return generators.recital(tmp_path_factory.mktemp("recital") / "source", "one two three")


def changed(given: Artifact, folder: Path, change: Change) -> Artifact:
    shutil.copytree(given.path, folder / "copy")
    artifact.write(folder / "copy", change(given.descriptor))
    return artifact.read(folder / "copy")


def with_settings(**settings: Any) -> Change:
    """Settings put in place of the model's; None takes one out."""

    def change(d: Descriptor) -> Descriptor:
        found = {k: v for k, v in {**d.settings, **settings}.items() if v is not None}
        return msgspec.structs.replace(d, settings=found)

    return change


def with_inputs(change: Callable[[Tensor], list[Tensor]]) -> Change:
    def replaced(d: Descriptor) -> Descriptor:
        inputs = tuple(made for t in d.model().inputs for made in change(t))
        return msgspec.structs.replace(d, components={"model": msgspec.structs.replace(d.model(), inputs=inputs)})

    return replaced


def refusal(folder: Path, source: Artifact, **options: Any) -> Problem:
    with pytest.raises(ProblemError) as raised:
        run_kind("triton-repo", folder, options, inputs={"from": source})
    (found,) = raised.value.problems
    return found


def settings(made: Artifact, name: str = "text-generation_stream") -> dict[str, Any]:
    return dict(json.loads((made.path / "models" / name / "1" / "settings.json").read_text()))


def config(made: Artifact, name: str) -> Any:
    return triton_schema.parse((made.path / "models" / name / "config.pbtxt").read_text())


def test_a_model_that_replies_and_one_that_streams(recital: Artifact, tmp_path: Path) -> None:
    heard = Heard()

    made = run_kind("triton-repo", tmp_path, {"name": "story"}, inputs={"from": recital}, heard=heard)

    for name in ("story", "story_stream"):
        golden.check(GOLDEN / f"{name}.pbtxt", (made.path / "models" / name / "config.pbtxt").read_text())
    files = {str(p.relative_to(made.path / "models")) for p in made.path.rglob("models/**/*") if p.is_file()}
    assert {"story_stream/1/decoder.onnx", "story_stream/1/tokenizer.json", "story/1/model.py"} <= files
    assert not any(f.startswith("story/") and f.endswith((".onnx", "tokenizer.json")) for f in files)
    assert made.descriptor.settings == {
        **{"backend": "python", "model": "story", "stream": "story_stream", "text": True, "triton": "24.10"}
    }
    assert made.descriptor.components["story_stream"].outputs[0] == Tensor("generated_text", "string", ("batch", 1))
    names = [line.split("=")[0].split(">")[0] for line in (made.path / "requirements.txt").read_text().splitlines()]
    assert names == ["numpy", "onnxruntime", "tokenizers"]
    assert heard.logs[-1] == "`story` replies and `story_stream` streams: at most 256 new tokens a text"


def test_options_go_to_the_model_that_runs_the_graphs(recital: Artifact, tmp_path: Path) -> None:
    options = {
        **{"max_batch_size": 4, "max_new_tokens": 64, "generation": {"temperature": 0.7, "stop": ["."]}, "version": 2},
        **{"parameters": {"intra_op_thread_count": 3}, "text_model": {"metric_tags": {"team": "search"}}},
        "instance_group": [{"kind": "KIND_CPU", "rate_limiter": {"resources": [{"name": "R", "count": 1}]}}],
    }

    made = run_kind("triton-repo", tmp_path, options, inputs={"from": recital})

    stream, reply = config(made, "text-generation_stream"), config(made, "text-generation")
    assert (stream.max_batch_size, reply.max_batch_size) == (4, 4)
    assert stream.parameters["intra_op_thread_count"].string_value == "3"
    assert stream.instance_group[0].rate_limiter.resources[0].name == "R"
    assert not reply.instance_group[0].HasField("rate_limiter")
    assert dict(reply.metric_tags) == {"team": "search"}
    assert stream.model_transaction_policy.decoupled
    assert not reply.model_transaction_policy.decoupled
    written = json.loads((made.path / "models/text-generation_stream/2/settings.json").read_text())
    assert (written["slots"], written["max_new_tokens"]) == (4, 64)
    assert written["defaults"] == {"temperature": 0.7, "stop": ["."]}


def test_on_a_gpu_the_server_needs_onnx_runtime_for_gpus(recital: Artifact, tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path, {"instance_group": [{"kind": "KIND_GPU"}]}, inputs={"from": recital})

    lines = (made.path / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in lines[1:]] == ["onnxruntime-gpu", "tokenizers"]


def test_what_the_checkpoint_says_of_generation_travels(recital: Artifact, tmp_path: Path) -> None:
    generation = {"eos_token_id": [3, 4], "pad_token_id": 1, "bos_token_id": 2, "no_repeat_ngram_size": 3}
    generation |= {"max_new_tokens": 17, "num_beams": 4, "do_sample": True}
    heard = Heard()
    source = changed(recital, tmp_path, with_settings(generation=generation))

    made = run_kind("triton-repo", tmp_path / "made", {}, inputs={"from": source}, heard=heard)

    found = settings(made)
    assert (found["eos_ids"], found["pad_id"], found["bos_id"]) == ([3, 4], 1, 2)
    assert (found["rules"], found["max_new_tokens"]) == ({"no_repeat_ngram_size": 3}, 17)
    assert any("`num_beams: 4` is not followed" in line for line in heard.logs)
    assert any("samples by default" in line for line in heard.logs)


def test_a_checkpoints_generation_config_becomes_settings(tmp_path: Path) -> None:
    from modelbuild.lib import inference_settings

    def found(own: dict[str, Any] | None, **config: Any) -> Any:
        files = {}
        if own is not None:
            files["generation_config.json"] = tmp_path / "generation_config.json"
            files["generation_config.json"].write_text(json.dumps(own))
        config = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], **config}
        return inference_settings.settings(files, config).get("generation")

    neutral = {"max_length": 20, "num_beams": 1, "do_sample": False, "repetition_penalty": 1.0, "min_length": 0}
    assert found({**neutral, "suppress_tokens": []}) is None
    assert found({"bad_words_ids": [[5]], "eos_token_id": 3}) == {"bad_words_ids": [[5]], "eos_token_id": 3}
    # transformers looks into `config.json` only where there is no file.
    assert found({}, num_beams=4, eos_token_id=2) == {"eos_token_id": 2}
    assert found(None, num_beams=4, eos_token_id=2) == {"num_beams": 4, "eos_token_id": 2}


@pytest.mark.parametrize(("own", "usual"), [({}, 256), ({"max_length": 100}, 256), ({"max_new_tokens": 600}, 511)])
def test_how_many_new_tokens_fit(recital: Artifact, tmp_path: Path, own: dict[str, Any], usual: int) -> None:
    source = changed(recital, tmp_path, with_settings(generation={"eos_token_id": 3, **own}))

    made = run_kind("triton-repo", tmp_path / "made", {}, inputs={"from": source})

    assert settings(made)["max_new_tokens"] == usual


def test_without_an_end_every_text_gets_the_number_that_is_given(recital: Artifact, tmp_path: Path) -> None:
    source = changed(recital, tmp_path, with_settings(generation={"pad_token_id": 0}))

    found = refusal(tmp_path / "a", source)
    made = run_kind("triton-repo", tmp_path / "b", {"max_new_tokens": 20}, inputs={"from": source})

    assert found.title == "nothing says where a text ends"
    assert "`eos_token_id`" in str(found.hint)
    assert (settings(made)["eos_ids"], settings(made)["max_new_tokens"]) == ([], 20)


def _without_cache(tensor: Tensor) -> list[Tensor]:
    return [] if tensor.name.startswith("past") else [tensor]


def _without_mask(tensor: Tensor) -> list[Tensor]:
    return [] if tensor.name == "attention_mask" else [tensor]


def _with_another(tensor: Tensor) -> list[Tensor]:
    return [tensor, Tensor("seqlens_k", "int32", ("batch",))] if tensor.name == "input_ids" else [tensor]


def _flat(tensor: Tensor) -> list[Tensor]:
    shape = tensor.shape[:3] if tensor.name.startswith("past") else tensor.shape
    return [msgspec.structs.replace(tensor, shape=shape)]


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (with_inputs(_without_cache), "the model was exported without a key-value cache"),
        (with_inputs(_without_mask), "the graph has no `attention_mask`"),
        (with_inputs(_with_another), "it is not known what to give the graph as `seqlens_k`"),
        (with_inputs(_flat), "`past_key_values.0.key` is not a cache of keys or values"),
        (with_settings(vocab_size=9), "the tokenizer is not of this model"),
        (with_settings(max_positions=None, max_length=None), "nothing says how many tokens the model takes"),
        (
            lambda d: msgspec.structs.replace(d, components={"a": d.model(), "b": d.model()}),
            "these are not the graphs of `text-generation`",
        ),
        (
            lambda d: msgspec.structs.replace(d, task="text2text-generation"),
            "these are not the graphs of `text2text-generation`",
        ),
        (
            lambda d: msgspec.structs.replace(
                d, components={"model": Component(d.model().file, d.model().inputs, d.model().outputs[1:])}
            ),
            "the graph gives no `logits`",
        ),
    ],
)
def test_a_model_that_text_cannot_be_generated_from_is_refused(
    recital: Artifact, tmp_path: Path, change: Change, title: str
) -> None:
    assert refusal(tmp_path / "made", changed(recital, tmp_path, change)).title.startswith(title)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"backend": "onnxruntime"}, "text is not generated by `backend: onnxruntime`"),
        ({"triton": "24.09"}, "text is generated on Triton 24.10 or newer"),
        ({"dynamic_batching": {"max_queue_delay_microseconds": 9}}, "`dynamic_batching` is not for generation"),
        ({"response_cache": True}, "`response_cache` is not for generation"),
        ({"model_warmup": [{"batch_size": 1}]}, "`model_warmup` is not for generation"),
        ({"buckets": [16]}, "`buckets` is not for generation"),
        ({"generation": {"max_tokens": 3}}, "`generation` has a default that no request could ask for"),
        ({"generation": {"max_new_tokens": 300}}, "`generation` has a default that no request could ask for"),
        ({"max_new_tokens": 512}, "`max_new_tokens: 512` is more than the model takes"),
        ({"max_length": 512}, "`max_length: 512` is more than the model takes"),
        ({"text_model": {"dynamic_batching": {}}}, "`dynamic_batching` is not for generation"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    recital: Artifact, tmp_path: Path, options: dict[str, Any], title: str
) -> None:
    assert refusal(tmp_path, recital, **options).title == title


def test_the_graph_alone_is_served_by_any_backend(recital: Artifact, tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path, {"text": False}, inputs={"from": recital})

    written = config(made, "text-generation")
    assert (written.backend, written.max_batch_size) == ("onnxruntime", 32)
    assert list(written.input[2].dims) == [1, -1, 1]


@pytest.mark.torch
def test_a_source_and_its_text_are_two_graphs(tmp_path: Path) -> None:
    source = generators.exported(tmp_path, generators.write_checkpoint(tmp_path / "t5", "t5"))

    text = run_kind("triton-repo", tmp_path / "text", {"name": "t5"}, inputs={"from": source})
    alone = run_kind("triton-repo", tmp_path / "alone", {"name": "t5", "text": False}, inputs={"from": source})

    found = settings(text, "t5_stream")
    assert (found["start_id"], found["context"], found["max_length"]) == (0, None, generators.POSITIONS)
    assert {p.name for p in (text.path / "models/t5_stream/1").glob("*.onnx")} == {"encoder.onnx", "decoder.onnx"}
    assert set(alone.descriptor.components) == {"t5_encoder", "t5_decoder"}
    assert alone.descriptor.settings["model"] == "t5_encoder"
    for name in ("t5_encoder", "t5_decoder"):
        assert (alone.path / "models" / name / "1" / "model.onnx").is_file()


def test_the_lint_knows_what_may_be_decoupled(recital: Artifact, tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path / "made", {"name": "m"}, inputs={"from": recital})
    shutil.copytree(made.path / "models", tmp_path / "models")
    path = tmp_path / "models/m_stream/config.pbtxt"
    path.write_text(path.read_text() + "response_cache { enable: true }\n")
    assert [p.title for p in triton_lint.problems(tmp_path / "models", "24.10")] == [
        "a decoupled model has no response cache"
    ]

    shutil.rmtree(tmp_path / "models/m_stream/1/serving")

    titles = [p.title for p in triton_lint.problems(tmp_path / "models", "24.10")]
    assert titles == ["a decoupled model refuses plain requests, and this one answers once"]
