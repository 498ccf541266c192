"""Plain PyTorch modules to ONNX, made by a function of the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild import kind
from modelbuild.artifact import Artifact, Tensor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import sessions
from tests.kinds.run import run_kind

pytestmark = pytest.mark.torch

RANKER = """
import torch


class Ranker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.item, self.user = torch.nn.Linear(4, 8), torch.nn.Linear(6, 8)

    def forward(self, items, user):
        scores = torch.einsum("bcw,bw->bc", self.item(items), self.user(user))
        return {"score": scores, "best": scores.max(dim=1).values}


def make():
    return Ranker(), {"items": torch.randn(2, 5, 4), "user": torch.randn(2, 6)}


def half():
    return Ranker().half(), {"items": torch.randn(2, 5, 4), "user": torch.randn(2, 6)}


def fails():
    raise KeyError("weights")


def bare():
    return Ranker()


class Freezing(torch.nn.Module):
    def forward(self, x):
        return x / int(x.shape[0])


def frozen():
    return Freezing(), {"x": torch.randn(2, 4)}
"""
SHAPES = {"items": ["batch", "candidates", 4], "user": ["batch", 6]}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / f"ranker_{tmp_path.name}.py"
    path.write_text(RANKER)
    return path


def build(code: Path, function: str = "make", *, sources: dict[str, Path] | None = None, **options: Any) -> Artifact:
    options = {"factory": f"{code.stem}:{function}", **options}
    return run_kind("onnx", code.parent / "build", options, sources={"code": code, **(sources or {})})


def refusal(run: Callable[..., Artifact], *arguments: Any, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        run(*arguments, **values)
    (found,) = caught.value.problems
    return found


def test_describes_inputs_as_said_and_outputs_as_seen(code: Path) -> None:
    made = build(code, inputs=SHAPES, outputs=["score", "best"], task="ranking").descriptor
    assert made.model().inputs == (
        Tensor("items", "float32", ("batch", "candidates", 4)),
        Tensor("user", "float32", ("batch", 6)),
    )
    assert made.model().outputs == (
        Tensor("score", "float32", ("batch", "candidates")),
        Tensor("best", "float32", ("batch",)),
    )
    assert (made.format, made.task, made.precision) == ("onnx", "ranking", "fp32")
    assert made.metrics == {"parameters": 4 * 8 + 8 + 6 * 8 + 8}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_computes_what_the_module_does_at_other_sizes(code: Path, exporter: str) -> None:
    import torch
    from safetensors.torch import save_file

    weights = {"item.weight": torch.randn(8, 4), "item.bias": torch.randn(8)}
    weights |= {"user.weight": torch.randn(8, 6), "user.bias": torch.randn(8)}
    save_file(weights, code.with_suffix(".safetensors"))
    made = build(code, inputs=SHAPES, exporter=exporter, sources={"weights": code.with_suffix(".safetensors")})

    random = np.random.default_rng(0)
    items, user = (random.standard_normal(s).astype(np.float32) for s in ((7, 11, 4), (7, 6)))
    scores, best = sessions.open_session(made.model_path).run(None, {"items": items, "user": user})

    item, one = (
        x @ weights[f"{n}.weight"].numpy().T + weights[f"{n}.bias"].numpy()
        for n, x in (("item", items), ("user", user))
    )
    np.testing.assert_allclose(scores, np.einsum("bcw,bw->bc", item, one), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(best, scores.max(axis=1))


def test_the_batch_alone_is_dynamic_by_default(code: Path) -> None:
    made = build(code).descriptor.model()
    assert [t.shape for t in made.inputs] == [("batch", 5, 4), ("batch", 6)]
    assert [(t.name, t.shape) for t in made.outputs] == [("output_0", ("batch", 5)), ("output_1", ("batch",))]


def test_a_package_in_a_folder(tmp_path: Path) -> None:
    package = tmp_path / "src" / "shop_of_tests"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "ranking.py").write_text(RANKER)
    options = {"factory": "shop_of_tests.ranking:make", "labels": ["a", "b", "c", "d", "e"]}
    made = run_kind("onnx", tmp_path / "build", options, sources={"code": tmp_path / "src"})
    assert made.descriptor.settings["labels"] == ["a", "b", "c", "d", "e"]
    assert not (package / "__pycache__").exists()


def test_the_same_bytes_each_time(code: Path) -> None:
    first = build(code).model_path.read_bytes()
    options = {"factory": f"{code.stem}:make"}
    again = run_kind("onnx", code.parent / "again", options, sources={"code": code})
    assert again.model_path.read_bytes() == first


def test_named_packages_are_tools() -> None:
    module = kind.load("onnx")
    import msgspec

    spec = msgspec.convert({"factory": "a:b", "code": "a.py", "packages": ["timm"]}, module.Spec)
    assert "timm" in kind.used_tools(module, spec)
    assert "transformers" not in kind.used_tools(module, spec)


@pytest.mark.parametrize(
    ("function", "options", "title"),
    [
        ("mak", {}, "`{module}` has no function `mak`"),
        ("fails", {}, "the factory `{module}:fails` failed"),
        ("bare", {}, "the factory `{module}:bare` returned no module with examples"),
        ("half", {}, "the factory's module is not in fp32"),
        ("frozen", {}, "the exported graph differs from the model"),
        ("make", {"outputs": ["score"]}, "`outputs` names 1 outputs, and the module gives 2"),
        ("make", {"inputs": {"item": ["batch"]}}, "`inputs` and the factory's examples are of different inputs"),
        ("make", {"inputs": {**SHAPES, "user": ["batch", 5]}}, "the example for `user` is of another shape"),
        (
            "make",
            {"inputs": {"items": ["batch", 5, "w"], "user": ["batch", 6]}},
            "the module does not run with batch 2, w 8",
        ),
        ("make", {"labels": ["a"]}, "1 labels are given for 5 outputs"),
    ],
)
def test_refuses(code: Path, function: str, options: dict[str, Any], title: str) -> None:
    found = refusal(build, code, function, **options)
    assert found.title == title.format(module=code.stem)


def test_says_where_the_code_fails(code: Path) -> None:
    found = dict(refusal(build, code, "fails").facts)
    line = RANKER[: RANKER.index("raise KeyError")].count("\n") + 1
    assert found == {"at": f"{code.name}:{line}", "cause": "KeyError: 'weights'"}


def test_refuses_code_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "broken_of_tests.py"
    path.write_text("import torch\nimport nowhere_at_all\n")
    found = refusal(build, path)
    assert found.title == "`broken_of_tests` of the factory `broken_of_tests:make` cannot be imported"
    assert dict(found.facts)["at"] == "broken_of_tests.py:2"


def test_refuses_a_module_from_elsewhere(code: Path) -> None:
    found = refusal(build, code, factory="json:loads")
    assert found.title == f"`json` is not in `{code.name}`"


def test_refuses_weights_of_another_module(code: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"item.weight": torch.zeros(8, 4)}, code.with_suffix(".safetensors"))
    found = refusal(build, code, sources={"weights": code.with_suffix(".safetensors")})
    assert found.title == f"the weights in `{code.stem}.safetensors` are not of this module"
