"""ONNX: exported and found equal to the model, or adopted and found whole; and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from modelbuild import artifact, kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import external_data, onnx_files, onnx_weights, sessions, torchscript
from modelbuild.lib.export_graph import Graph
from modelbuild.lib.export_tasks import TASKS
from tests import models
from tests.kinds.run import Heard, run_kind

Make = Callable[[str], Artifact]


def options(**values: Any) -> Any:
    return msgspec.convert(values, kind.load("onnx").Spec)


def export(folder: Path, checkpoint: Artifact, **values: Any) -> Artifact:
    return run_kind("onnx", folder, values, inputs={"from": checkpoint})


def adopt(folder: Path, path: Path, tokenizer: Artifact | None = None, **values: Any) -> Artifact:
    inputs = {"tokenizer": tokenizer} if tokenizer else {}
    return run_kind("onnx", folder, values, inputs=inputs, sources={"path": path})


def refusal(run: Callable[..., Artifact], *arguments: Any, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        run(*arguments, **values)
    (found,) = caught.value.problems
    return found


def every_file(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.torch
class TestExport:
    @pytest.mark.parametrize(
        ("model_type", "inputs"),
        [
            ("bert", ["input_ids", "attention_mask", "token_type_ids"]),
            ("roberta", ["input_ids", "attention_mask"]),
            ("distilbert", ["input_ids", "attention_mask"]),
        ],
    )
    def test_gives_the_inputs_the_model_takes_with_dynamic_axes(
        self, tiny_onnx: Make, model_type: str, inputs: list[str]
    ) -> None:
        made = tiny_onnx(model_type).descriptor
        assert [t.name for t in made.model().inputs] == inputs
        assert {t.shape for t in made.model().inputs} == {("batch", "sequence")}
        assert made.model().outputs == (artifact.Tensor("last_hidden_state", "float32", ("batch", "sequence", 32)),)
        assert (made.format, made.task, made.precision) == ("onnx", "feature-extraction", "fp32")

    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
    def test_equals_the_model_at_shapes_it_was_not_traced_at(
        self, tiny: Callable[[str], Path], tiny_onnx: Make, model_type: str
    ) -> None:
        import torch
        import transformers

        model = transformers.AutoModel.from_pretrained(tiny(model_type)).eval()
        made = tiny_onnx(model_type)
        session = sessions.open_session(made.model_path)
        names = [t.name for t in made.descriptor.model().inputs]
        random = np.random.default_rng(5)
        for shape in ((1, 2), (5, 11), (7, 50)):
            ids = random.integers(5, models.VOCAB_SIZE, shape)
            whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            case = {n: whole[n] for n in names}
            with torch.inference_mode():
                expected = model(**{n: torch.from_numpy(v) for n, v in case.items()}).last_hidden_state.numpy()
            np.testing.assert_allclose(session.run(None, case)[0], expected, atol=2e-5)

    def test_carries_the_tokenizer_and_settings_on(self, tiny_checkpoint: Make, tiny_onnx: Make) -> None:
        before, after = tiny_checkpoint("bert"), tiny_onnx("bert")
        assert after.descriptor.settings == before.descriptor.settings
        assert after.descriptor.tokenizer == before.descriptor.tokenizer
        for name in (*after.descriptor.tokenizer, *after.descriptor.extras):
            assert (after.path / name).samefile(before.path / name)

    def test_says_how_near_the_model_it_is(self, tmp_path: Path, tiny_checkpoint: Make) -> None:
        heard = Heard()
        run_kind("onnx", tmp_path, {}, inputs={"from": tiny_checkpoint("bert")}, heard=heard)
        assert heard.metrics["difference"] < 1e-5
        assert heard.logs[-1].startswith("equal to the checkpoint within")
        assert heard.logs[-1].endswith("at 1x7, 2x16, 3x33, 1x1")

    @pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
    def test_gives_the_same_bytes_in_another_folder_and_none_of_the_machine_s(
        self, tmp_path: Path, tiny_checkpoint: Make, exporter: str
    ) -> None:
        source = tiny_checkpoint("bert")
        first = export(tmp_path / "one", source, exporter=exporter)
        second = export(tmp_path / "another/place", source, exporter=exporter)
        assert every_file(first.path) == every_file(second.path)
        text = first.model_path.read_bytes()
        for trace in (str(tmp_path), "site-packages", ".py", os.path.expanduser("~/")):  # noqa: PTH111
            assert trace.encode() not in text

    def test_dynamo_gives_the_same_graph_to_the_outside(
        self, tmp_path: Path, tiny_checkpoint: Make, tiny_onnx: Make
    ) -> None:
        made = export(tmp_path, tiny_checkpoint("bert"), exporter="dynamo")
        assert made.descriptor.model() == tiny_onnx("bert").descriptor.model()
        assert onnx_files.opsets(onnx_files.load(made.model_path))["ai.onnx"] == 20

    def test_writes_the_opset_asked_for(self, tmp_path: Path, tiny_checkpoint: Make) -> None:
        made = export(tmp_path, tiny_checkpoint("bert"), opset=19)
        assert onnx_files.opsets(onnx_files.load(made.model_path)) == {"ai.onnx": 19}

    def test_of_the_real_minilm_is_what_onnx_runtime_fuses_whole(self, tmp_path: Path, minilm: Artifact) -> None:
        made = export(tmp_path, minilm)

        from onnxruntime.transformers.optimizer import optimize_model

        fused = optimize_model(str(made.model_path), model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
        found = fused.get_fused_operator_statistics()
        assert (found["Attention"], found["SkipLayerNormalization"], found["EmbedLayerNormalization"]) == (6, 12, 1)
        assert made.descriptor.settings["pooling"] == "mean"
        names = {t.name for t in onnx_files.load(made.model_path).graph.initializer}
        assert "encoder.layer.0.attention.self.query.weight.T" in names
        assert not any("pooler" in name for name in names)

    def test_equal_weights_are_stored_once(self, tiny: Callable[[str], Path]) -> None:
        (source,) = graphs_of(tiny("bert"))
        layers = source.module.model.encoder.layer
        layers[1].load_state_dict(layers[0].state_dict())

        graph, weights = torchscript.trace(source, 17)

        assert not any(n.op_type == "Identity" for n in graph.graph.node)
        stored = {(w.shape, w.array().tobytes()) for w in weights.values()}
        assert len(stored) == len(weights)

    def test_weights_too_large_for_one_file_lie_beside_it(self, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
        (source,) = graphs_of(tiny("bert"))
        for place, limit in (("inside", 1 << 30), ("beside", 1000)):
            graph, weights = torchscript.trace(source, 17)
            (tmp_path / place).mkdir()
            files = onnx_weights.save_with(graph, weights, tmp_path / place / "model.onnx", limit=limit)
            assert len(files) == (1 if place == "inside" else 2)
        inside, beside = (onnx_files.load(tmp_path / p / "model.onnx") for p in ("inside", "beside"))
        assert external_data.external_files(onnx_files.load(tmp_path / "beside/model.onnx", weights=False))
        case = dict(source.cases[0].feeds)
        results = [sessions.open_session(tmp_path / p / "model.onnx").run(None, case)[0] for p in ("inside", "beside")]
        np.testing.assert_array_equal(*results)
        assert len(inside.graph.initializer) == len(beside.graph.initializer)


def graphs_of(folder: Path, model_type: str = "bert", task: str = "feature-extraction") -> list[Graph]:
    from modelbuild.lib import architectures, export
    from modelbuild.lib.lean_torch import import_class, import_torch

    torch = import_torch()
    model = export.load(folder, import_class(architectures.class_name(model_type, task)), TASKS[task].without)
    return export.graphs(torch, model, TASKS[task], use_cache=True)


@pytest.mark.torch
class TestExportRefused:
    def test_weights_of_another_model(self, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
        folder = tmp_path / "mixed"
        folder.mkdir()
        for name, source in (("config.json", "bert"), ("model.safetensors", "distilbert")):
            (folder / name).write_bytes((tiny(source) / name).read_bytes())
        mixed = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": folder})
        found = refusal(export, tmp_path / "onnx", mixed)
        assert found.title == "the checkpoint lacks weights of `BertModel`"
        assert found.hint == "its `config.json` and its weights are not of one model"

    def test_a_config_of_other_sizes(self, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
        folder = tmp_path / "mixed"
        folder.mkdir()
        config = json.loads((tiny("bert") / "config.json").read_text()) | {"intermediate_size": 48}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((tiny("bert") / "model.safetensors").read_bytes())
        mixed = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": folder})
        found = refusal(export, tmp_path / "onnx", mixed)
        assert found.title == "the checkpoint does not load as `BertModel`"

    def test_a_result_beyond_the_tolerance(self, tmp_path: Path, tiny_checkpoint: Make) -> None:
        found = refusal(export, tmp_path, tiny_checkpoint("bert"), tolerance=1e-12)
        assert found.title == "the exported graph differs from the model"
        assert dict(found.facts)["output"] == "last_hidden_state"
        assert dict(found.facts)["inputs"] == "1x7"

    def test_a_tokenizer_with_ids_the_model_lacks(self, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
        folder = tmp_path / "model"
        models.write_tokenizer(folder, words=(*models.WORDS, "surplus"))
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((tiny("bert") / name).read_bytes())
        checkpoint = run_kind("checkpoint", tmp_path / "checkpoint", {}, sources={"path": folder})
        found = refusal(export, tmp_path / "onnx", checkpoint)
        assert found.title == "the tokenizer does not fit the model"
        assert found.facts == (("tokenizer", "token ids up to 106"), ("model", "embeddings for ids up to 105"))


def described(folder: Path, descriptor: Descriptor) -> Artifact:
    folder.mkdir()
    artifact.write(folder, descriptor)
    return artifact.read(folder)


def test_anything_but_a_checkpoint_is_refused(tmp_path: Path) -> None:
    found = refusal(export, tmp_path / "onnx", described(tmp_path / "in", Descriptor(format="dataset")))
    assert found.title == "only a checkpoint can be exported"


class TestAdopt:
    def test_takes_the_file_as_it_is(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx")
        heard = Heard()
        made = run_kind("onnx", tmp_path / "build", {"task": "feature-extraction"}, sources={"path": path}, heard=heard)
        assert made.model_path.read_bytes() == path.read_bytes()
        assert made.descriptor.task == "feature-extraction"
        assert made.descriptor.settings == {"vocab_size": models.VOCAB_SIZE}
        assert [t.shape for t in made.descriptor.model().inputs] == [("batch", "sequence")] * 2
        assert heard.logs == ["runs: `last_hidden_state` [2, 8, 8]"]

    @pytest.mark.parametrize("whole_folder", [False, True])
    def test_takes_the_weights_that_lie_beside_it(self, tmp_path: Path, whole_folder: bool) -> None:
        path = models.write_onnx(tmp_path / "in/encoder.onnx", external=True)
        made = adopt(tmp_path / "build", path.parent if whole_folder else path)
        assert (made.path / "encoder.onnx.data").is_file()
        case = {n: np.ones((1, 3), dtype=np.int64) for n in ("input_ids", "attention_mask")}
        results = [sessions.open_session(p).run(None, case)[0] for p in (path, made.model_path)]
        np.testing.assert_array_equal(*results)

    def test_takes_tokenizer_and_settings_from_a_target(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        made = adopt(tmp_path / "build", models.write_onnx(tmp_path / "encoder.onnx"), tokenizer_artifact)
        assert made.descriptor.tokenizer == tokenizer_artifact.descriptor.tokenizer
        assert made.descriptor.settings == tokenizer_artifact.descriptor.settings
        assert (made.path / "tokenizer.json").is_file()

    def test_takes_tokenizer_and_settings_from_the_folder(self, tmp_path: Path) -> None:
        folder = models.write_onnx(tmp_path / "in/encoder.onnx").parent
        models.write_tokenizer(folder)
        (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 16}')
        (folder / "README.md").write_text("hello")
        made = adopt(tmp_path / "build", folder)
        assert made.descriptor.tokenizer == ("tokenizer.json", "tokenizer_config.json")
        assert made.descriptor.extras == ("config.json",)
        assert made.descriptor.settings["max_length"] == 16
        assert not (made.path / "README.md").exists()

    def test_a_model_with_inputs_that_cannot_be_made_up_is_loaded_only(self, tmp_path: Path) -> None:
        from onnx import TensorProto, helper

        node = helper.make_node("Reshape", ["x", "shape"], ["y"])
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
        shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])
        graph = helper.make_graph([node], "g", [x, shape], [y])
        onnx.save(
            helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx"
        )
        heard = Heard()
        run_kind("onnx", tmp_path / "build", {}, sources={"path": tmp_path / "m.onnx"}, heard=heard)
        assert heard.logs[0].startswith("loads; made-up inputs do not fit it, so it was not run")

    def test_needs_no_torch(self, tmp_path: Path) -> None:
        assert kind.used_tools(kind.load("onnx"), options(path="a.onnx")) == {"onnx", "onnxruntime", "tokenizers"}


class TestAdoptRefused:
    @pytest.mark.parametrize(
        "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100, lambda b: b"version https://git"]
    )
    def test_a_corrupt_file(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx")
        path.write_bytes(damage(path.read_bytes()))
        found = refusal(adopt, tmp_path / "build", path)
        assert found.title == "`encoder.onnx` is not a readable ONNX file"
        assert found.hint == "it may be truncated, or a git-lfs pointer in place of the file"

    def test_an_invalid_graph(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx")
        model = onnx.load(path)
        model.graph.node[0].input[0] = "nowhere"
        path.write_bytes(model.SerializeToString())
        assert refusal(adopt, tmp_path / "build", path).title == "`encoder.onnx` is not a valid ONNX model"

    def test_an_operator_that_does_not_exist(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx")
        model = onnx.load(path)
        model.graph.node[4].domain = "my.own"
        model.opset_import.add(domain="my.own", version=1)
        path.write_bytes(model.SerializeToString())
        found = refusal(adopt, tmp_path / "build", path)
        assert found.title == "ONNX Runtime does not load `encoder.onnx`"
        assert "my.own" in dict(found.facts)["cause"]

    @pytest.mark.parametrize("location", ["../encoder.onnx.data", "/etc/passwd", "a/../../b", "C:/b", ""])
    def test_weights_outside_its_folder(self, tmp_path: Path, location: str) -> None:
        path = models.write_onnx(tmp_path / "in/encoder.onnx", external=True)
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
        found = refusal(adopt, tmp_path / "build", path)
        assert found.title == "`encoder.onnx` keeps weights outside its folder"
        assert found.facts[0] == ("location", location or "(empty)")

    def test_weights_behind_a_link_that_leads_outside(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "in/encoder.onnx", external=True)
        data = path.with_name("encoder.onnx.data")
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
        assert refusal(adopt, tmp_path / "build", path).title == "`encoder.onnx` keeps weights outside its folder"

    def test_missing_weights(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx", external=True)
        path.with_name("encoder.onnx.data").unlink()
        assert refusal(adopt, tmp_path / "build", path).title == "the weights of `encoder.onnx` are missing"

    def test_truncated_weights(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx", external=True)
        data = path.with_name("encoder.onnx.data")
        data.write_bytes(data.read_bytes()[:-8])
        assert refusal(adopt, tmp_path / "build", path).title == "the weights of `encoder.onnx` are truncated"

    def test_weights_that_are_not_watched(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx", external=True)
        path.with_name("encoder.onnx.data").rename(tmp_path / "other.xyz")
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = "other.xyz" if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        found = refusal(adopt, tmp_path / "build", path)
        assert found.title == "the weights of `encoder.onnx` are in a file that is not watched"

    def test_a_folder_with_two_models(self, tmp_path: Path) -> None:
        models.write_onnx(tmp_path / "in/a.onnx")
        models.write_onnx(tmp_path / "in/b.onnx")
        found = refusal(adopt, tmp_path / "build", tmp_path / "in")
        assert found.title == "the folder `in` holds 2 ONNX files, not one"
        assert found.facts == (("found", "a.onnx, b.onnx"),)

    def test_a_tokenizer_that_does_not_fit(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        path = models.write_onnx(tmp_path / "encoder.onnx", rows=50)
        found = refusal(adopt, tmp_path / "build", path, tokenizer_artifact)
        assert found.title == "the tokenizer does not fit the model"
        assert found.facts[1] == ("model", "embeddings for ids up to 49")


class TestSessions:
    def test_both_packages_installed_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second distribution on the path, as pip would leave it."""
        info = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
        monkeypatch.syspath_prepend(tmp_path)
        found = refusal(sessions.open_session, tmp_path / "m.onnx")
        assert found.title == "`onnxruntime` and `onnxruntime-gpu` are both installed"
        assert found.hint is not None
        assert found.hint.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")

    def test_a_provider_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        path = models.write_onnx(tmp_path / "m.onnx")
        found = refusal(sessions.open_session, path, providers=("CUDAExecutionProvider",))
        assert found.title == "this ONNX Runtime has no `CUDAExecutionProvider`"


class TestOptions:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "says not what to export or adopt"),
            ({"from": "a", "path": "b.onnx"}, "`from` and `path` exclude each other"),
            ({"from": "a", "task": "feature-extracton"}, "the task `feature-extracton` cannot be exported"),
            ({"from": "a", "opset": 21}, "`torchscript` exports opset 14 to 20"),
            ({"from": "a", "opset": 17, "exporter": "dynamo"}, "`dynamo` exports opset 18 to 23"),
            ({"from": "a", "tolerance": 0}, "`tolerance` must be positive"),
            ({"from": "a", "tokenizer": "b"}, "`tokenizer` does not go with `from`"),
            ({"path": "a.onnx", "opset": 17}, "`opset` does not go with `path`"),
            ({"path": "a.onnx", "factory": "a:b"}, "`path` and `factory` exclude each other"),
            ({"factory": "a:b"}, "`factory` needs `code`"),
            ({"factory": "a.b", "code": "a.py"}, "`a.b` is not `package.module:function`"),
            ({"from": "a", "task": "fill-mask", "use_cache": True}, "`fill-mask` has no key-value cache"),
            ({"from": "a", "task": "fill-mask", "labels": ["a"]}, "`fill-mask` has no labels"),
        ],
    )
    def test_that_do_not_fit_together(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            options(**values)

    def test_onnxscript_is_a_tool_of_dynamo_alone(self) -> None:
        module = kind.load("onnx")
        assert "onnxscript" not in kind.used_tools(module, options(**{"from": "a"}))
        assert "onnxscript" in kind.used_tools(module, options(**{"from": "a", "exporter": "dynamo"}))
