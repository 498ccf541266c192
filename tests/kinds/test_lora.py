"""LoRA adapters merged at the checkpoint: the weights are those of PEFT's own merge."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import safetensors_files
from tests import models
from tests.kinds.run import Heard, run_kind
from tests.sandbox import Sandbox

pytestmark = pytest.mark.torch
peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install 'modelbuild[dev]'")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bert", {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 16}),
    "all": ("bert", {"target_modules": "all-linear", "r": 2, "bias": "all"}),
    "rank-stabilised": ("bert", {"target_modules": ["dense"], "r": 4, "use_rslora": True}),
    "patterns": (
        "bert",
        {
            "target_modules": ["query", "key"],
            "r": 4,
            "rank_pattern": {"query": 2},
            "alpha_pattern": {"layer.0.*key": 5},
        },
    ),
    "dora": ("bert", {"target_modules": ["query", "dense"], "r": 4, "use_dora": True}),
    "embeddings": ("bert", {"target_modules": ["word_embeddings", "query"], "r": 4}),
    "saved": ("bert", {"target_modules": ["query"], "r": 4, "modules_to_save": ["key"]}),
    "turned": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    "turned-dora": ("gpt2", {"target_modules": ["c_attn"], "r": 4, "fan_in_fan_out": True, "use_dora": True}),
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 8}),
}


def base(folder: Path, model_type: str, dtype: str = "float32") -> Path:
    """A tiny seeded checkpoint."""
    import torch
    import transformers

    models.write_model(folder, model_type, task="feature-extraction" if model_type == "bert" else "text-generation")
    if dtype != "float32":
        auto = transformers.AutoModel if model_type == "bert" else transformers.AutoModelForCausalLM
        auto.from_pretrained(folder).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def trained(folder: Path, source: Path, model_type: str, **config: Any) -> dict[str, Any]:
    """Write an adapter whose every number is random; the state dict of PEFT's merge, as float32 numpy arrays."""
    import torch
    import transformers

    auto = transformers.AutoModel if model_type == "bert" else transformers.AutoModelForCausalLM
    model = peft.get_peft_model(auto.from_pretrained(source), peft.LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return {name: tensor.float().numpy() for name, tensor in merged.state_dict().items()}


def weights(built: Artifact) -> dict[str, Any]:
    found = {}
    for path in built.path.glob("*.safetensors"):
        for name, info in safetensors_files.header(path).items():
            found[name] = np.asarray(safetensors_files.array(path, info)).astype(np.float32)
    return found


def merge(folder: Path, source: Path, adapter: Path, heard: Heard | None = None) -> Artifact:
    return run_kind("checkpoint", folder, {}, sources={"path": source, "adapter": adapter}, heard=heard)


@pytest.mark.parametrize("case", CASES)
def test_merged_as_peft_merges(tmp_path: Path, case: str) -> None:
    model_type, config = CASES[case]
    source = base(tmp_path / "base", model_type)
    expected = trained(tmp_path / "adapter", source, model_type, **config)
    heard = Heard()

    built = merge(tmp_path / "made", source, tmp_path / "adapter", heard)

    found, before = weights(built), weights(run_kind("checkpoint", tmp_path / "plain", {}, sources={"path": source}))
    assert found.keys() == before.keys()
    different = {name for name in found if not np.array_equal(found[name], before[name])}
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)
    assert different
    assert any(f"merged the adapter into {len(different)} tensors" in line for line in heard.logs)


def test_merged_in_bfloat16(tmp_path: Path) -> None:
    source = base(tmp_path / "base", "llama", "bfloat16")
    expected = trained(tmp_path / "adapter", source, "llama", target_modules=["q_proj"], r=4)

    found = weights(merge(tmp_path / "made", source, tmp_path / "adapter"))

    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-2, atol=1e-3, err_msg=name)


def test_shards_that_do_not_change_are_linked(tmp_path: Path) -> None:
    import transformers

    source = base(tmp_path / "base", "bert")
    expected = trained(
        tmp_path / "adapter", source, "bert", target_modules=["encoder.layer.0.attention.self.query"], r=2
    )
    model = transformers.AutoModel.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2

    built = merge(tmp_path / "made", source, tmp_path / "adapter")

    found = weights(built)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


def test_an_adapter_of_a_larger_model_finds_its_place(tmp_path: Path) -> None:
    """Trained on a classifier, whose encoder is called `bert.` there, and merged into the encoder alone."""
    import torch
    import transformers

    source = base(tmp_path / "base", "bert")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    model = peft.get_peft_model(whole, peft.LoraConfig(target_modules=["query"], r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    expected = {n.removeprefix("bert."): t for n, t in model.merge_and_unload().state_dict().items()}

    found = weights(merge(tmp_path / "made", source, tmp_path / "adapter"))

    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-5, atol=2e-6, err_msg=name)


def test_the_adapter_is_part_of_the_key(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    source = base(sandbox.root / "recipes" / "base", "bert")
    trained(sandbox.root / "recipes" / "adapter", source, "bert", target_modules=["query"], r=2)
    sandbox.recipe("model: {kind: checkpoint, path: base, adapter: adapter}")
    first = sandbox.built("model").digests
    (sandbox.root / "recipes" / "adapter" / "README.md").write_text("new words")
    assert sandbox.built("model").built == []
    config = sandbox.root / "recipes" / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 99}))
    assert sandbox.built("model").digests != first


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and an adapter that fits it."""
    folder = tmp_path_factory.mktemp("good")
    source = base(folder / "base", "bert")
    trained(folder / "adapter", source, "bert", target_modules=["query"], r=2)
    return source, folder / "adapter"


class TestBadInput:
    @staticmethod
    def refusal(folder: Path, source: Path, adapter: Path) -> Problem:
        with pytest.raises(ProblemError) as caught:
            merge(Path(tempfile.mkdtemp(dir=folder)), source, adapter)
        (found,) = caught.value.problems
        return found

    def altered(self, folder: Path, adapter: Path, **config: Any) -> Path:
        shutil.copytree(adapter, folder / "altered")
        path = folder / "altered" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder / "altered"

    def test_of_another_size(self, tmp_path: Path, good: tuple[Path, Path]) -> None:
        import transformers

        other = base(tmp_path / "other", "bert")
        transformers.AutoModel.from_config(models.config("bert", hidden_size=64)).save_pretrained(other)
        found = self.refusal(tmp_path, other, good[1])
        assert found.title == "the adapter does not fit the checkpoint"
        assert dict(found.facts)["adapter"] == "[32, 32]"

    def test_of_another_architecture(self, tmp_path: Path, good: tuple[Path, Path]) -> None:
        found = self.refusal(tmp_path, base(tmp_path / "gpt2", "gpt2"), good[1])
        assert found.title == "the adapter changes what the checkpoint does not have"
        assert "query" in dict(found.facts)["looked for"]

    @pytest.mark.parametrize(
        ("config", "title"),
        [
            ({"peft_type": "IA3"}, "the adapter is not LoRA but IA3"),
            ({"layer_replication": [[0, 1]]}, "the adapter has `layer_replication`, which is not merged here"),
            ({"lora_bias": True}, "the adapter has `lora_bias`, which is not merged here"),
            ({"alpha_pattern": {"(": 3}}, "the adapter's `alpha_pattern` is not a pattern"),
        ],
    )
    def test_settings(self, tmp_path: Path, good: tuple[Path, Path], config: Any, title: str) -> None:
        assert self.refusal(tmp_path, good[0], self.altered(tmp_path, good[1], **config)).title == title

    def test_files(self, tmp_path: Path, good: tuple[Path, Path]) -> None:
        source, adapter = good
        altered = self.altered(tmp_path, adapter)
        weights_file = altered / "adapter_model.safetensors"
        data = weights_file.read_bytes()
        weights_file.write_bytes(data[:-10])
        assert "corrupt or truncated" in self.refusal(tmp_path, source, altered).title
        weights_file.unlink()
        assert self.refusal(tmp_path, source, altered).title == "the adapter has no `adapter_model.safetensors`"
        (altered / "adapter_model.bin").write_bytes(b"pickled")
        assert "are pickled" in self.refusal(tmp_path, source, altered).title
        (altered / "adapter_config.json").write_text("[]")
        assert self.refusal(tmp_path, source, altered).title == "`adapter_config.json` is not a JSON object"
        (altered / "adapter_config.json").unlink()
        assert self.refusal(tmp_path, source, altered).title == "the adapter has no `adapter_config.json`"

    def test_half_a_pair(self, tmp_path: Path, good: tuple[Path, Path]) -> None:
        from safetensors.numpy import load_file, save_file

        altered = self.altered(tmp_path, good[1])
        tensors = load_file(altered / "adapter_model.safetensors")
        del tensors[next(name for name in tensors if "lora_B" in name)]
        save_file(tensors, altered / "adapter_model.safetensors")
        assert self.refusal(tmp_path, good[0], altered).title == "the adapter has A or B of a module, but not both"
