"""Checkpoints: where they come from, what belongs to them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from tests import models
from tests.kinds.run import Heard, run_kind


def write_safetensors(path: Path, tensors: dict[str, list[float]]) -> None:
    """A safetensors file of fp32 vectors, by the format's own description."""
    import struct

    entries, data = {}, b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        entries[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whole as files go: config, tokenizer, weights."""
    root = tmp_path / "model"
    models.write_tokenizer(root)
    (root / "config.json").write_text('{"model_type": "bert", "vocab_size": 106, "max_position_embeddings": 64}')
    write_safetensors(root / "model.safetensors", {"a": [1.0, 2.0], "b": [3.0]})
    return root


def build(tmp_path: Path, source: Path, **options: Any) -> Artifact:
    return run_kind("checkpoint", tmp_path / "build", options, sources={"path": source})


def refusal(tmp_path: Path, source: Path, **options: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        build(tmp_path, source, **options)
    (found,) = caught.value.problems
    return found


def options(**values: Any) -> Any:
    return msgspec.convert(values, kind.load("checkpoint").Spec)


def test_takes_the_files_that_belong_and_no_others(tmp_path: Path, folder: Path) -> None:
    (folder / "README.md").write_text("hello")
    (folder / "training_args.json").write_text("{}")

    made = build(tmp_path, folder)

    assert made.descriptor.format == "safetensors"
    assert made.descriptor.model().file == "model.safetensors"
    assert made.descriptor.tokenizer == ("tokenizer.json", "tokenizer_config.json")
    assert made.descriptor.extras == ("config.json",)
    assert made.descriptor.precision == "fp32"
    assert made.descriptor.metrics == {"parameters": 3}
    assert sorted(p.name for p in made.path.iterdir()) == [
        "config.json",
        "descriptor.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_states_the_model_s_own_limit_when_no_one_states_a_lower(tmp_path: Path, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert build(tmp_path, folder).descriptor.settings["max_length"] == 64


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean+max"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_reads_the_settings_of_sentence_transformers(
    tmp_path: Path, folder: Path, pooling: dict[str, Any], expected: str
) -> None:
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": true}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    heard = Heard()

    made = run_kind("checkpoint", tmp_path / "build", {}, sources={"path": folder}, heard=heard)

    assert made.descriptor.settings == {
        "model_type": "bert",
        "vocab_size": 106,
        "max_positions": 64,
        "max_length": 48,
        "lowercase": True,
        "pooling": expected,
        "normalize": True,
        "modules": ["Dense"],
    }
    assert "sentence-transformers' module `Dense` is not part of the exported model" in heard.logs


def test_takes_all_shards_that_the_index_names(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model-1.safetensors", {"a": [1.0]})
    write_safetensors(folder / "model-2.safetensors", {"b": [1.0, 2.0]})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    made = build(tmp_path, folder)

    assert made.descriptor.model().file == "model.safetensors.index.json"
    assert made.descriptor.metrics == {"parameters": 3}
    assert (made.path / "model-2.safetensors").is_file()


def test_the_real_minilm_from_its_package(minilm: Artifact) -> None:
    assert minilm.descriptor.settings == {
        "architecture": "BertModel",
        "model_type": "bert",
        "vocab_size": 30522,
        "max_positions": 512,
        "max_length": 256,
        "pooling": "mean",
        "normalize": True,
    }
    assert not (minilm.path / "README.md").exists()


class TestRefused:
    def test_a_file_in_place_of_a_folder(self, tmp_path: Path, folder: Path) -> None:
        assert refusal(tmp_path, folder / "config.json").title == "the checkpoint `config.json` is not a folder"

    def test_no_config(self, tmp_path: Path, folder: Path) -> None:
        (folder / "config.json").unlink()
        assert refusal(tmp_path, folder).title == "the checkpoint has no `config.json`"

    @pytest.mark.parametrize("text", ["{", "[]", "\ufeff{}", ""])
    def test_a_config_that_is_not_json(self, tmp_path: Path, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        assert refusal(tmp_path, folder).title == "`config.json` is not a JSON object"

    def test_a_config_of_something_else(self, tmp_path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        assert refusal(tmp_path, folder).title == "`config.json` has no `model_type`"

    def test_code_of_its_own(self, tmp_path: Path, folder: Path) -> None:
        config = {"model_type": "homebrew", "auto_map": {"AutoModel": "modeling_homebrew.HomebrewModel"}}
        (folder / "config.json").write_text(json.dumps(config))
        found = refusal(tmp_path, folder)
        assert found.title == "the checkpoint's architecture `homebrew` is code of its own, which is never run"
        assert ("auto map", "AutoModel → modeling_homebrew.HomebrewModel") in found.facts

    def test_no_weights(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        found = refusal(tmp_path, folder)
        assert found.title == "the checkpoint has no weights"
        assert found.hint == "`model.safetensors` is missing: is the download complete?"

    def test_an_adapter_alone(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        found = refusal(tmp_path, folder)
        assert found.title == "the checkpoint has no `model.safetensors`"
        assert found.hint == "an adapter alone is not a model: name its base here, and it as `adapter`"

    def test_a_missing_shard(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert refusal(tmp_path, folder).title == "the weight file `model-2.safetensors` is missing"

    def test_a_shard_of_another_model(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": {"a": "model-1.safetensors", "c": "model-1.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        found = refusal(tmp_path, folder)
        assert found.title == "`model-1.safetensors` lacks a tensor that `model.safetensors.index.json` names"

    def test_a_shard_outside_the_folder(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {"a": "../other.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        found = refusal(tmp_path, folder)
        assert found.title == "`model.safetensors.index.json` names weights outside its folder"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda b: b[:-1],
            lambda b: b[:5],
            lambda b: b"",
            lambda b: b + b"x",
            lambda b: b"\xff" * len(b),
            lambda b: b[:8] + b"{" + b[9:].replace(b"}", b"]", 1),
        ],
    )
    def test_damaged_weights(self, tmp_path: Path, folder: Path, damage: Callable[[bytes], bytes]) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        assert refusal(tmp_path, folder).title == "the weight file `model.safetensors` is corrupt or truncated"

    def test_a_git_lfs_pointer(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        found = refusal(tmp_path, folder)
        assert found.title == "`model.safetensors` is a git-lfs pointer, not the weights"
        assert found.hint == "git lfs pull"

    def test_pickled_weights_unless_the_recipe_says_so(self, tmp_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"anything")
        found = refusal(tmp_path, folder)
        assert found.title == "the checkpoint's weights are pickled, which can run code when loaded"
        assert found.hint is not None
        assert "`allow_pickle: true`" in found.hint


@pytest.mark.torch
class TestPickled:
    def test_are_converted_to_safetensors(self, tmp_path: Path, folder: Path) -> None:
        import torch

        (folder / "model.safetensors").unlink()
        tied = torch.arange(6.0).reshape(2, 3)
        torch.save({"a": tied, "tied": tied, "turned": tied.T}, folder / "pytorch_model.bin")

        made = build(tmp_path, folder, allow_pickle=True)

        from safetensors.torch import load_file

        loaded = load_file(made.path / "model.safetensors")
        assert {k: v.tolist() for k, v in loaded.items()} == {
            "a": [[0, 1, 2], [3, 4, 5]],
            "tied": [[0, 1, 2], [3, 4, 5]],
            "turned": [[0, 3], [1, 4], [2, 5]],
        }
        assert not list(made.path.glob("*.bin"))

    def test_shards_are_converted_one_by_one(self, tmp_path: Path, folder: Path) -> None:
        import torch

        (folder / "model.safetensors").unlink()
        torch.save({"a": torch.ones(2)}, folder / "pytorch_model-1.bin")
        torch.save({"b": torch.ones(3)}, folder / "pytorch_model-2.bin")
        index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

        made = build(tmp_path, folder, allow_pickle=True)

        assert made.descriptor.model().file == "model.safetensors.index.json"
        assert json.loads((made.path / "model.safetensors.index.json").read_text())["weight_map"] == {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
        assert made.descriptor.metrics == {"parameters": 5}

    def test_a_pickle_that_runs_code_is_not_run(self, tmp_path: Path, folder: Path) -> None:
        import os

        import torch

        class Malice:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "broken-in"),)

        (folder / "model.safetensors").unlink()
        torch.save({"a": Malice()}, folder / "pytorch_model.bin")

        found = refusal(tmp_path, folder, allow_pickle=True)

        assert found.title == "the pickled weights `pytorch_model.bin` cannot be read safely"
        assert not (tmp_path / "broken-in").exists()

    def test_a_whole_training_state_is_refused(self, tmp_path: Path, folder: Path) -> None:
        import torch

        (folder / "model.safetensors").unlink()
        torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, folder / "pytorch_model.bin")
        found = refusal(tmp_path, folder, allow_pickle=True)
        assert found.title == "the pickled weights `pytorch_model.bin` hold more than tensors"


class TestHub:
    COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"

    @pytest.fixture
    def cache(self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A hub cache that holds `folder` as org/model at COMMIT."""
        from huggingface_hub import constants

        root = tmp_path / "hub"
        snapshot = root / "models--org--model/snapshots" / self.COMMIT
        snapshot.parent.mkdir(parents=True)
        folder.rename(snapshot)
        (snapshot / "README.md").write_text("hello")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return root

    @pytest.mark.parametrize("digits", [7, 8, 40])
    def test_loads_from_the_local_cache(self, tmp_path: Path, cache: Path, digits: int) -> None:
        heard = Heard()
        spec = {"hf": "org/model", "revision": self.COMMIT[:digits]}
        made = run_kind("checkpoint", tmp_path / "build", spec, heard=heard)
        assert made.descriptor.extras == ("config.json",)
        assert not (made.path / "README.md").exists()
        assert f"org/model at commit {self.COMMIT}" in heard.logs

    @pytest.mark.parametrize(
        ("repo", "revision"), [("org/model", "0" * 40), ("org/model", "0000000"), ("org/other", COMMIT)]
    )
    def test_says_when_neither_cache_nor_network_has_it(
        self, tmp_path: Path, cache: Path, repo: str, revision: str
    ) -> None:
        with pytest.raises(ProblemError) as caught:
            run_kind("checkpoint", tmp_path / "build", {"hf": repo, "revision": revision})
        (found,) = caught.value.problems
        assert found.title == f"`{repo}` is not in the local hub cache and the hub cannot be reached"
        assert ("cause", "the hub is set offline (HF_HUB_OFFLINE)") in found.facts
        assert found.hint is not None
        assert found.hint.startswith(f"hf download {repo} --revision {revision}")

    def test_a_snapshot_without_weights_is_not_taken_for_the_model(self, tmp_path: Path, cache: Path) -> None:
        next(cache.rglob("model.safetensors")).unlink()
        with pytest.raises(ProblemError, match="the checkpoint has no weights"):
            run_kind("checkpoint", tmp_path / "build", {"hf": "org/model", "revision": self.COMMIT})


class TestOptions:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "says not where the checkpoint is"),
            ({"path": "a", "package": "b/c"}, "`path` and `package` exclude each other"),
            ({"hf": "a/b"}, "`hf` needs a `revision`"),
            ({"hf": "a/b", "revision": "main"}, "`main` is not a commit: a branch or tag can move"),
            ({"hf": "a/b", "revision": "abc"}, "`abc` is not a commit: a branch or tag can move"),
            ({"hf": "https://x/y", "revision": "abcdef0"}, "`https://x/y` is not a repository id"),
            ({"path": "a", "revision": "abcdef0"}, "`revision` goes with `hf`"),
        ],
    )
    def test_that_do_not_fit_together(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            options(**values)

    def test_only_what_is_used_is_a_tool(self) -> None:
        module = kind.load("checkpoint")
        assert not kind.used_tools(module, options(path="a"))
        assert kind.used_tools(module, options(hf="a/b", revision="abcdef0")) == {"huggingface_hub"}
        assert kind.used_tools(module, options(path="a", allow_pickle=True)) == {"torch", "safetensors"}
