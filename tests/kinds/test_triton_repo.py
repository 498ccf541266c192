"""Kind `triton-repo`: what the repository holds, that Triton's schema takes it, and that every footgun is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelbuild import artifact, digest
from modelbuild.artifact import Artifact, Component, Descriptor, Tensor
from modelbuild.errors import ProblemError
from modelbuild.lib import triton_config, triton_lint, triton_schema
from modelbuild.lib.triton_serving import embeddings, tokens
from tests import golden, models
from tests.kinds.run import Heard, run_kind

GOLDEN = Path(__file__).parent.parent / "golden" / "triton"
SHAPE: tuple[int | str, ...] = ("batch", "sequence")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer_artifact: Artifact) -> Artifact:
    """A hand-made encoder with external weights, a tokenizer and the settings of an embedding model."""
    folder = tmp_path_factory.mktemp("encoder") / "out"
    models.write_onnx(folder / "encoder.onnx", external=True)
    for name in tokenizer_artifact.descriptor.tokenizer:
        shutil.copy(tokenizer_artifact.path / name, folder / name)
    inputs = tuple(Tensor(n, "int64", SHAPE) for n in ("input_ids", "attention_mask"))
    outputs = (Tensor("last_hidden_state", "float32", (*SHAPE, 8)),)
    settings = {**tokenizer_artifact.descriptor.settings, "pooling": "mean", "normalize": True}
    components = {"model": Component("encoder.onnx", inputs, outputs)}
    descriptor = Descriptor("onnx", "feature-extraction", "fp32", components, tokenizer_artifact.descriptor.tokenizer)
    artifact.write(folder, msgspec.structs.replace(descriptor, settings=settings))
    return artifact.read(folder)


@pytest.fixture(scope="module")
def plan(encoder: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """A made-up TensorRT plan of the encoder for compute capabilities."""

    def make(*capabilities: str, **settings: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("plan") / "out"
        folder.mkdir()
        (folder / "model.plan").write_bytes(b"plan")
        d = encoder.descriptor
        component = msgspec.structs.replace(d.model(), file="model.plan")
        own = {**d.settings, "backend": "tensorrt", "compute_capabilities": list(capabilities), **settings}
        made = msgspec.structs.replace(
            d, format="trt-plan", tokenizer=(), components={"model": component}, settings=own
        )
        artifact.write(folder, made)
        return artifact.read(folder)

    return make


def config(made: Artifact, name: str) -> Any:
    """A model's config, through Triton's schema."""
    return triton_schema.parse((made.path / "models" / name / "config.pbtxt").read_text())


def edited(given: Artifact, **changes: Any) -> Artifact:
    return Artifact(given.path, msgspec.structs.replace(given.descriptor, **changes))


def rewritten(given: Artifact, folder: Path, **changes: Any) -> Artifact:
    """A copy of an artifact with another descriptor."""
    shutil.copytree(given.path, folder / "copy")
    artifact.write(folder / "copy", msgspec.structs.replace(given.descriptor, **changes))
    return artifact.read(folder / "copy")


def contents(folder: Path) -> str:
    return digest.of_tree((str(p.relative_to(folder)), digest.of_file(p)) for p in folder.rglob("*") if p.is_file())


def refusal(folder: Path, source: Artifact, **options: Any) -> str:
    """The title of the one problem of a build that fails."""
    with pytest.raises(ProblemError) as raised:
        run_kind("triton-repo", folder, options, inputs={"from": source})
    (found,) = raised.value.problems
    return found.title


def spec_refusal(options: dict[str, Any]) -> str:
    """What the recipe's checks say of options."""
    from modelbuild.kinds.triton_repo import Spec

    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert({"from": "onnx", **options}, Spec)
    return str(raised.value)


# --- what the repository holds ----------------------------------------------------------------------------------


def test_text_in_and_the_graph_behind_it(encoder: Artifact, tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path, {"name": "encoder"}, inputs={"from": encoder})

    for name in ("encoder", "encoder_model"):
        golden.check(GOLDEN / f"{name}.pbtxt", (made.path / "models" / name / "config.pbtxt").read_text())
    files = {str(p.relative_to(made.path / "models")) for p in made.path.rglob("models/**/*") if p.is_file()}
    assert {"encoder/1/model.py", "encoder/1/tokenizer.json", "encoder/1/settings.json"} <= files
    assert {"encoder_model/1/model.onnx", "encoder_model/1/encoder.onnx.data"} <= files
    assert made.descriptor.components["encoder"].outputs[0] == Tensor("embedding", "float32", ("batch", 8))
    assert made.descriptor.settings == {
        "backend": "onnxruntime", "model": "encoder", "text": True, "triton": "24.10"
    }  # fmt: skip
    (onnx,) = made.path.glob("models/*/1/model.onnx")
    assert onnx.read_bytes() == encoder.model_path.read_bytes()


def test_every_option_of_a_graph_alone(encoder: Artifact, tmp_path: Path) -> None:
    options = {
        "text": False,
        "name": "graph",
        "triton": "24.11",
        "version": 3,
        "max_batch_size": 64,
        "dynamic_batching": {"max_queue_delay_microseconds": 200, "preferred_batch_size": [16, 32]},
        "instance_group": [
            {"kind": "KIND_GPU", "count": 2, "gpus": [0], "rate_limiter": {"resources": [{"name": "R", "count": 4}]}}
        ],
        "model_warmup": [{"batch_size": 64, "sizes": {"sequence": 128}}],
        "version_policy": {"specific": {"versions": [3]}},
        "optimization": {
            "graph": {"level": 1},
            "execution_accelerators": {
                "gpu_execution_accelerator": [
                    {"name": "tensorrt", "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": 1 << 30}}
                ]
            },
        },
        "response_cache": True,
        "parameters": {"intra_op_thread_count": 2, "enable_mem_arena": False, "session.use_env_allocators": "1"},
        "config": {"metric_tags": {"team": "search"}, "model_metrics": {}},
    }

    made = run_kind("triton-repo", tmp_path, options, inputs={"from": encoder})

    golden.check(GOLDEN / "options.pbtxt", (made.path / "models" / "graph" / "config.pbtxt").read_text())
    mask = np.frombuffer((made.path / "models/graph/warmup/warmup-1-attention_mask").read_bytes(), np.int64)
    assert mask.tolist() == [1] * 128
    assert not (made.path / "requirements.txt").exists()


def test_the_python_backend_states_what_the_server_needs(encoder: Artifact, tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path, {"backend": "python"}, inputs={"from": encoder})

    names = [line.split("=")[0].split(">")[0] for line in (made.path / "requirements.txt").read_text().splitlines()]
    assert names == ["numpy", "onnxruntime", "tokenizers"]
    assert "numpy>=1.26,<2" in (made.path / "requirements.txt").read_text()
    assert config(made, "feature-extraction_model").backend == "python"
    assert (made.path / "models/feature-extraction_model/1/serving/graph_model.py").is_file()


def test_the_same_inputs_give_the_same_bytes_whatever_the_folders_are_called(encoder: Artifact, tmp_path: Path) -> None:
    other = rewritten(encoder, tmp_path / "elsewhere")

    first = run_kind("triton-repo", tmp_path / "a", {}, inputs={"from": encoder})
    second = run_kind("triton-repo", tmp_path / "b", {}, inputs={"from": other})

    assert contents(first.path) == contents(second.path)
    written = b"".join(p.read_bytes() for p in first.path.rglob("*") if p.suffix in (".json", ".pbtxt", ".py", ".txt"))
    assert str(tmp_path).encode() not in written


def test_programs_run_on_the_python_of_the_server(encoder: Artifact, tmp_path: Path) -> None:
    import ast

    made = run_kind("triton-repo", tmp_path, {"backend": "python"}, inputs={"from": encoder})

    for path in made.path.rglob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert "modelbuild" not in imported


def test_the_tokenizer_of_another_target_is_lent(
    encoder: Artifact, tokenizer_artifact: Artifact, tmp_path: Path
) -> None:
    bare = rewritten(encoder, tmp_path, tokenizer=())

    made = run_kind("triton-repo", tmp_path / "made", {}, inputs={"from": bare, "tokenizer": tokenizer_artifact})

    assert (made.path / "models/feature-extraction/1/tokenizer.json").is_file()


def test_a_graph_without_tokenizer_or_with_another_task_is_served_alone_and_says_so(
    encoder: Artifact, tmp_path: Path
) -> None:
    heard = Heard()
    other = rewritten(encoder, tmp_path, task="fill-mask")

    made = run_kind("triton-repo", tmp_path / "made", {}, inputs={"from": other}, heard=heard)

    assert list(made.descriptor.components) == ["fill-mask"]
    assert any("text is not served" in line for line in heard.logs)


def test_a_plan_is_served_by_tensorrt_within_its_profiles(plan: Callable[..., Artifact], tmp_path: Path) -> None:
    profiles = [{"input_ids": {"min": [1, 8], "opt": [8, 128], "max": [16, 512]}}]

    made = run_kind("triton-repo", tmp_path, {}, inputs={"from": plan("8.6", profiles=profiles)})

    written = config(made, "feature-extraction")
    assert (written.backend, written.max_batch_size) == ("tensorrt", 16)
    assert written.default_model_filename == "model.plan"
    assert (made.path / "models/feature-extraction/1/model.plan").read_bytes() == b"plan"


def test_texts_for_a_plan_are_of_the_lengths_that_its_profiles_take(
    plan: Callable[..., Artifact], tokenizer_artifact: Artifact, tmp_path: Path
) -> None:
    profiles = [{"input_ids": {"min": [1, 8], "opt": [8, 16], "max": [16, 24]}}]
    inputs = {"from": plan(profiles=profiles), "tokenizer": tokenizer_artifact}

    made = run_kind("triton-repo", tmp_path, {}, inputs=inputs)

    folder = made.path / "models/feature-extraction/1"
    tokenizer = tokens.Tokenizer(folder, json.loads((folder / "settings.json").read_text()))
    assert tokenizer.padded(tokenizer([["the"]]).rows)["input_ids"].shape == (1, 8)
    assert tokenizer.padded(tokenizer([["the " * 50]]).rows)["input_ids"].shape == (1, 24)


def test_several_plans_are_told_apart_by_compute_capability(plan: Callable[..., Artifact], tmp_path: Path) -> None:
    made = run_kind("triton-repo", tmp_path / "made", {}, inputs={"from": [plan("8.0"), plan("8.6", "8.9")]})

    files = dict(config(made, "feature-extraction").cc_model_filenames)
    assert files == {"8.0": "model_sm80.plan", "8.6": "model_sm86_89.plan", "8.9": "model_sm86_89.plan"}
    assert {p.name for p in (made.path / "models/feature-extraction/1").iterdir()} == set(files.values())
    with pytest.raises(ProblemError, match="two plans are for compute capability"):
        run_kind("triton-repo", tmp_path / "twice", {}, inputs={"from": [plan("8.0"), plan("8.0")]})


def test_states_and_controls_of_sequences_are_not_asked_of_clients(encoder: Artifact, tmp_path: Path) -> None:
    start = {"kind": "CONTROL_SEQUENCE_READY", "int32_false_true": [0, 1]}
    batching = {"direct": {}, "control_input": [{"name": "attention_mask", "control": [start]}]}

    made = run_kind(
        "triton-repo", tmp_path / "a", {"text": False, "sequence_batching": batching}, inputs={"from": encoder}
    )

    written = config(made, "feature-extraction")
    assert [i.name for i in written.input] == ["input_ids"]
    assert written.HasField("sequence_batching")
    batching["control_input"] = [{"name": "attention", "control": [start]}]
    title = refusal(tmp_path / "b", encoder, text=False, sequence_batching=batching)
    assert title == "`sequence_batching` names `attention`, which the graph does not have"
    state = {"state": [{"input_name": "attention_mask", "output_name": "last_hidden_state"}]}
    title = refusal(tmp_path / "c", encoder, text=False, backend="python", sequence_batching=state)
    assert title == "Triton keeps no `state` of sequences for the Python backend"


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "output", "dynamic"),
    [
        ([("batch", "sequence")], ("batch", 8), True),
        ([("batch", "sequence")], ("out_0", 8), True),
        ([("batch", "sequence"), ("batch",)], ("batch",), True),
        ([("batch", "sequence"), ("other", "sequence")], ("batch", 8), False),
        ([("batch", "sequence")], ("tokens", 8), False),
        ([(1, "sequence")], (1, 8), False),
        ([("batch", "sequence"), ()], ("batch", 8), False),
    ],
)
def test_a_batch_is_the_first_dimension_of_all(inputs: list[Any], output: Any, dynamic: bool) -> None:
    given = [Tensor(f"in{i}", "int64", shape) for i, shape in enumerate(inputs)]

    found = triton_config.batch(given, [Tensor("out", "float32", output)])

    assert found.dynamic == dynamic
    assert bool(found.why) != dynamic


def test_a_column_without_further_dimensions_is_reshaped(encoder: Artifact) -> None:
    column = Component("m.onnx", (Tensor("x", "float32", ("batch",)),), (Tensor("y", "bool", ("batch", 2)),))

    made = triton_config.new("m", "onnxruntime", column, 8)

    assert list(made.input[0].dims) == [1]
    assert made.input[0].HasField("reshape")
    assert list(made.input[0].reshape.shape) == []


def test_a_graph_without_a_batch_is_served_without_and_says_so(encoder: Artifact, tmp_path: Path) -> None:
    heard = Heard()
    fixed = rewritten(encoder, tmp_path, components={"model": _fixed(encoder, 4)})

    made = run_kind("triton-repo", tmp_path / "a", {"text": False}, inputs={"from": fixed}, heard=heard)

    written = config(made, "feature-extraction")
    assert written.max_batch_size == 0
    assert not written.HasField("dynamic_batching")
    assert "no batches: `input_ids` is fixed to [4, 'sequence']" in heard.logs
    assert refusal(tmp_path / "b", fixed, max_batch_size=4) == "`max_batch_size: 4` needs a batch dimension"


def _fixed(given: Artifact, batch: int) -> Component:
    component = given.descriptor.model()
    inputs = tuple(msgspec.structs.replace(t, shape=(batch, *t.shape[1:])) for t in component.inputs)
    outputs = tuple(msgspec.structs.replace(t, shape=(batch, *t.shape[1:])) for t in component.outputs)
    return msgspec.structs.replace(component, inputs=inputs, outputs=outputs)


# --- footguns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch_size": 0, "dynamic_batching": True}, "`dynamic_batching` needs a batch"),
        ({"max_batch_size": 8, "model_warmup": [{"batch_size": 9}]}, "warm-up with more than `max_batch_size`"),
        ({"sequence_batching": {}, "dynamic_batching": {}}, "exclude each other"),
        ({"sequence_batching": {}, "text": True}, "exclude each other"),
        ({"name": "a/b"}, "cannot be a model's name"),
        ({"triton": "2.51"}, "is no Triton release"),
        ({"config": {"platform": "onnxruntime_onnx"}}, "`config` does not take `platform`"),
        ({"text_model": {"max_batch_size": 3}}, "`text_model` does not take `max_batch_size`"),
        ({"text": False, "tokenizer": "other"}, "`text: false` leaves out"),
        ({"backend": "onnx"}, "Invalid enum value"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_the_recipe(options: dict[str, Any], said: str) -> None:
    assert said in spec_refusal(options)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"dynamic_batching": {"max_queue_delay": 3}}, "`dynamic_batching` has no field `max_queue_delay`"),
        ({"instance_group": [{"kind": "KIND_TPU"}]}, "`instance_group` has no value `KIND_TPU`"),
        ({"config": {"model_metrics": {}}}, "Triton 24.10 does not know `model_metrics`"),
        (
            {"parameters": {"intra_op_thread_counts": 2}},
            "the onnxruntime backend has no parameter `intra_op_thread_counts`",
        ),
        ({"model_warmup": [{"batch_size": 33}]}, "warm-up with `batch_size: 33` crashes the server"),
        (
            {"model_warmup": [{"inputs": {"input_ids": {"data_type": "TYPE_INT64", "dims": [4], "zero_data": True}}}]},
            "warm-up must give every input, and no other",
        ),
        ({"model_warmup": [{"sizes": {"seq": 4}}]}, "the graph has no dimension `seq`"),
        (
            {"dynamic_batching": {"preferred_batch_size": [64]}},
            "`preferred_batch_size: 64` is more than `max_batch_size: 32`",
        ),
        ({"version_policy": {"specific": {"versions": [2]}}}, "`version_policy` names version 2, which is not there"),
        ({"config": {"model_transaction_policy": {"decoupled": True}}}, "a decoupled model refuses plain requests"),
        ({"instance_group": [{"kind": "KIND_CPU", "gpus": [0]}]}, "`KIND_CPU` has no GPU to use"),
        (
            {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensort"}]}}},
            "`gpu_execution_accelerator` has no `tensort`",
        ),
        (
            {
                "optimization": {
                    "execution_accelerators": {
                        "gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"precision": "FP16"}}]
                    }
                }
            },
            "the accelerator `tensorrt` has no parameter `precision`",
        ),
        ({"backend": "tensorrt"}, "`backend: tensorrt` does not run this"),
    ],
)
def test_footguns_are_found_at_build_time(
    encoder: Artifact, tmp_path: Path, options: dict[str, Any], title: str
) -> None:
    assert refusal(tmp_path, encoder, **{"text": False, **options}).startswith(title)


def test_plans_that_triton_cannot_run_are_refused(plan: Callable[..., Artifact], tmp_path: Path) -> None:
    groups = [{"kind": "KIND_CPU"}]

    assert refusal(tmp_path / "a", plan(backend="rtx")).startswith("Triton's TensorRT backend does not load")
    assert refusal(tmp_path / "b", plan(), instance_group=groups) == "a TensorRT plan does not run on `KIND_CPU`"


def test_a_parameter_that_the_backend_does_not_read_is_kept_and_said(encoder: Artifact, tmp_path: Path) -> None:
    heard = Heard()

    made = run_kind("triton-repo", tmp_path, {"parameters": {"owner": "search"}}, inputs={"from": encoder}, heard=heard)

    assert config(made, "feature-extraction_model").parameters["owner"].string_value == "search"
    assert "the onnxruntime backend does not read the parameter `owner`" in heard.logs


def _drop(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.pbtxt"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda m: m.rename(m.with_name("other")), "the config's name `m` is not its folder's"),
        (lambda m: _drop(m / "config.pbtxt"), "the model has no `config.pbtxt`"),
        (lambda m: _drop(m / "1"), "the model has no version folder"),
        (lambda m: [_drop(p) for p in (m / "1").iterdir()], "the version folder `1/` is empty"),
        (lambda m: _drop(m / "1" / "encoder.onnx.data"), "the weights of `model.onnx` are missing"),
        (_replaced("dims: -1", "dims: [-1,]"), "`config.pbtxt` is not a Triton config"),
        (_replaced('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"'), "Triton refuses `platform: onnxruntime"),
        (_replaced("max_batch_size: 32", "max_batch_size: 0"), "`dynamic_batching` with `max_batch_size: 0`"),
        (_replaced("  dims: -1", "  dims: -1\n  dims: -1"), "the dims of `input_ids` do not fit the graph"),
        (_replaced('name: "input_ids"', 'name: "ids"'), "the graph has no `ids`"),
        (_replaced("instance_group {\n  count: 1\n}\n", ""), "the config has no `instance_group`"),
    ],
)  # fmt: skip
def test_the_lint_finds_what_was_edited_by_hand(
    encoder: Artifact, tmp_path: Path, change: Callable[[Path], None], title: str
) -> None:
    made = run_kind("triton-repo", tmp_path / "made", {"text": False, "name": "m"}, inputs={"from": encoder})
    shutil.copytree(made.path / "models", tmp_path / "models")

    change(tmp_path / "models" / "m")

    titles = [p.title for p in triton_lint.problems(tmp_path / "models", "24.10")]
    assert any(t.startswith(title) for t in titles), titles


def test_the_lint_finds_an_ensemble_whose_version_folder_is_lost(tmp_path: Path) -> None:
    text = 'name: "e" platform: "ensemble" ensemble_scheduling { step { model_name: "gone" model_version: -1 } }'
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.pbtxt").write_text(text)

    titles = [p.title for p in triton_lint.problems(tmp_path, "24.10")]

    assert titles == ["the model has no version folder", "the ensemble's step `gone` is not in the repository"]


# --- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "title"),
    [
        ({"task": None}, {"text": True}, "the model does not say what its task is"),
        ({"task": "fill-mask"}, {"text": True}, "text cannot be served for the task `fill-mask`"),
        ({"settings": {"max_length": 32}}, {}, "the model does not say how its token vectors become one embedding"),
        ({}, {"pooling": "meen"}, "the pooling `meen` is not known"),
        ({"settings": {"vocab_size": 5}}, {}, "the tokenizer is not of this model"),
        ({"settings": {"max_positions": 64}}, {"max_length": 65}, "`max_length: 65` is more than the model takes"),
        ({"settings": {"max_length": 32}}, {"buckets": [64]}, "the bucket 64 is longer than any text"),
        (
            {"settings": {"max_length": 32, "modules": ["Dense"]}},
            {},
            "the model's embeddings need more than its graph has",
        ),
        ({"task": "text-classification"}, {}, "`last_hidden_state` is not the logits of the task"),
        ({"task": "token-classification"}, {}, "the model has no labels"),
        ({"task": "question-answering"}, {}, "`question-answering` needs the outputs start_logits, end_logits"),
        ({"tokenizer": ()}, {"text": True}, "the artifact that `tokenizer` names has no `tokenizer.json`"),
    ],
)
def test_a_model_that_text_cannot_be_served_from_is_refused(
    encoder: Artifact, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], title: str
) -> None:
    source = rewritten(encoder, tmp_path, **changes)

    assert refusal(tmp_path / "made", source, **options) == title


def _tokenizer(folder: Path, **settings: Any) -> tokens.Tokenizer:
    models.write_tokenizer(folder)
    usual = {
        "max_length": 32,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_left": False,
        "inputs": dict.fromkeys(tokens.INPUTS, "int64"),
    }
    return tokens.Tokenizer(folder, {**usual, **settings})


def test_texts_are_padded_together_on_the_models_side(tmp_path: Path) -> None:
    for left, ids, positions in (
        (False, [[2, 5, 3, 0], [2, 5, 7, 3]], [[0, 1, 2, 2], [0, 1, 2, 3]]),
        (True, [[0, 2, 5, 3], [2, 5, 7, 3]], [[0, 0, 1, 2], [0, 1, 2, 3]]),
    ):
        tokenizer = _tokenizer(tmp_path, pad_left=left)

        made = tokenizer.padded(tokenizer([["the", "the of"]]).rows)

        assert made["input_ids"].tolist() == ids
        assert made["attention_mask"].tolist() == [[int(i > 0) for i in row] for row in ids]
        assert made["position_ids"].tolist() == positions


@pytest.mark.parametrize(("buckets", "words", "length"), [([], 9, 11), ([8, 16], 9, 16), ([8, 16], 3, 8)])
def test_a_batch_is_padded_to_its_longest_text_or_to_the_next_bucket(
    tmp_path: Path, buckets: list[int], words: int, length: int
) -> None:
    tokenizer = _tokenizer(tmp_path, buckets=buckets)

    made = tokenizer.padded(tokenizer([["the " * words, "of"]]).rows)

    assert made["input_ids"].shape == (2, length)


def test_truncation_is_said(tmp_path: Path) -> None:
    made = _tokenizer(tmp_path, max_length=8)([["the " * 6, "the " * 7, ""]])

    assert made.truncated.tolist() == [False, True, False]
    assert made.counts.tolist() == [8, 8, 2]


def test_a_long_context_is_read_in_windows_and_nothing_is_cut(tmp_path: Path) -> None:
    made = _tokenizer(tmp_path, max_length=12, stride=2)([["who?", "how?"], ["the of", "the " * 20]])

    assert made.of.tolist() == [0, 1, 1, 1, 1]
    assert not made.truncated.any()


def test_a_question_that_leaves_no_room_for_its_context_is_cut_and_said(tmp_path: Path) -> None:
    made = _tokenizer(tmp_path, max_length=12, stride=2)([["the " * 50, "how?"], ["it was", "it was"]])

    assert made.truncated.tolist() == [True, False]
    assert made.rows[0].ids == [2, *[5] * 5, 3, made.rows[0].ids[7], made.rows[0].ids[8], 3]


@pytest.mark.torch
@pytest.mark.parametrize("pooling", [*embeddings.POOLINGS, "cls+mean"])
def test_poolings_are_those_of_sentence_transformers(pooling: str) -> None:
    torch = pytest.importorskip("torch")
    sentence = pytest.importorskip("sentence_transformers.models", reason="sentence-transformers is not installed")
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3, 5, 4)).astype("float32")
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    theirs = sentence.Pooling(4, pooling_mode=tuple(pooling.split("+")) if "+" in pooling else pooling)

    made = embeddings.pooled(vectors, mask, pooling)

    given = {"token_embeddings": torch.tensor(vectors), "attention_mask": torch.tensor(mask)}
    np.testing.assert_allclose(made, theirs(given)["sentence_embedding"].numpy(), atol=1e-6)


def test_settings_of_the_text_model_are_as_the_recipe_and_the_model_say(encoder: Artifact, tmp_path: Path) -> None:
    options = {"max_length": 24, "buckets": [8, 16], "normalize": False, "pooling": "cls"}

    made = run_kind("triton-repo", tmp_path, options, inputs={"from": encoder})

    settings = json.loads((made.path / "models/feature-extraction/1/settings.json").read_text())
    assert (settings["max_length"], settings["buckets"]) == (24, [8, 16, 24])
    assert (settings["pooling"], settings["normalize"], settings["rows"]) == ("cls", False, 32)
