"""Facts of the machine in a target's key: only those its options use, told where the machine lacks them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelbuild import kind
from tests.sandbox import Sandbox, kind_source

NEEDS = """

HARDWARE = {"gpu": "say `note: cpu`, or build it on a machine with a GPU", "sm": "say `note: cpu`"}
RESOURCES = ("gpu",)


def hardware(spec):
    return {} if spec.note == "cpu" else HARDWARE


def resources(spec):
    return () if spec.note == "cpu" else RESOURCES
"""
RECIPE = """
targets:
  plan: {kind: compiled}
"""


@pytest.fixture
def project(sandbox: Sandbox) -> Sandbox:
    """A project with the kind `compiled`, which is made for the GPU at hand unless its note says `cpu`."""
    sandbox.kinds(compiled=kind_source() + NEEDS)
    sandbox.recipe(RECIPE)
    return sandbox


def gpu(folder: Path, name: str, sm: str) -> str:
    """A PATH on which `nvidia-smi` tells of this GPU."""
    folder.mkdir(exist_ok=True)
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\necho '{name}, {sm}, 580.65'\n")
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_without_the_gpu_that_a_target_needs_nothing_is_tried(project: Sandbox) -> None:
    ran = project.run("build", "plan")
    assert ran.code == 2
    assert "error: this machine has no NVIDIA GPU" in ran.err
    assert "recipes/r.yaml:3:3" in ran.err
    assert "not found: gpu, sm" in ran.err
    assert "hint:      say `note: cpu`, or build it on a machine with a GPU" in ran.err


def test_another_gpu_makes_the_target_stale_and_is_named(project: Sandbox, tmp_path: Path) -> None:
    ada = gpu(tmp_path / "ada", "NVIDIA L4", "8.9")
    hopper = gpu(tmp_path / "hopper", "NVIDIA H200", "9.0")
    assert project.build("plan", PATH=ada).built == ["plan"]
    assert project.build("plan", PATH=ada).fresh == ["plan"]
    why = project.run("why", "plan", PATH=hopper)
    assert "hardware `gpu`: NVIDIA L4 → NVIDIA H200" in why.out
    assert "hardware `sm`: 8.9 → 9.0" in why.out
    assert project.build("plan", PATH=hopper).built == ["plan"]
    assert project.build("plan", PATH=ada).restored == ["plan"]


def test_a_target_that_uses_no_hardware_is_the_same_everywhere(project: Sandbox, tmp_path: Path) -> None:
    project.edit("kind: compiled", "kind: compiled, note: cpu")
    assert project.build("plan").built == ["plan"]
    assert project.build("plan", PATH=gpu(tmp_path / "gpu", "NVIDIA H200", "9.0")).fresh == ["plan"]


def test_a_kind_without_functions_uses_its_constants() -> None:
    module = kind.load("zip")
    spec = module.Spec(from_=["a"])
    assert kind.used_hardware(module, spec) == {}
    assert kind.used_resources(module, spec) == ()
    assert set(kind.used_tools(module, spec)) <= module.TOOLS.keys()
