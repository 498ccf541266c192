"""Runners: ONNX Runtime for real, and what a plan needs before it may run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from modelbuild import artifact
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import gpu, runners
from modelbuild.lib.gpu import Gpu
from tests import graphs
from tests.kinds.run import run_kind
from tests.sandbox import Sandbox

if find_spec("polygraphy") is None:  # importing it would choose a TensorRT for all tests
    pytest.skip("Polygraphy is not installed: pip install 'modelbuild[rtx]'", allow_module_level=True)

L4, H200, T4 = Gpu("NVIDIA L4", "8.9", "580"), Gpu("NVIDIA H200", "9.0", "580"), Gpu("Tesla T4", "7.5", "580")
SMALL = {"x": {"min": [1, 3], "opt": [1, 3], "max": [4, 3]}}
LARGE = {"x": {"min": [1, 3], "opt": [32, 3], "max": [64, 3]}}


def plan(**settings: object) -> Descriptor:
    known = {"backend": "rtx", "backend_version": "1.7.1.116", "compute_capabilities": ["8.6", "8.9"]}
    return Descriptor(format="trt-plan", settings={**known, "profiles": [SMALL, LARGE], **settings})


def refusal(plan: Descriptor, device: Gpu | None) -> Problem:
    with pytest.raises(ProblemError) as caught:
        runners.require_device(plan, device)
    return caught.value.problems[0]


def test_onnx_runs_on_the_cpu(tmp_path: Path) -> None:
    model = graphs.product(tmp_path)
    given = np.ones((2, 16), "float32")
    with runners.runner(model, threads=1) as runner:
        got = runner.infer({"x": given})["y"]
        assert runner.last_inference_time() > 0
    np.testing.assert_allclose(got, given @ graphs.weights(16, 8), rtol=1e-5)


def test_two_runners_compare_by_polygraphy(tmp_path: Path) -> None:
    from polygraphy.comparator import Comparator

    one = graphs.product(tmp_path / "one")
    two = run_kind("fp16", tmp_path / "half", {}, inputs={"from": one})
    feeds = [{"x": np.ones((2, 16), "float32")}]
    results = Comparator.run([runners.runner(one), runners.runner(two)], data_loader=feeds)
    (first, second) = (outputs[0]["y"] for _, outputs in results)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() < 0.02


def test_a_provider_that_is_not_there_is_no_silent_cpu(tmp_path: Path) -> None:
    if gpu.first() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(ProblemError) as caught, runners.runner(graphs.product(tmp_path), provider="cuda"):
        pass
    assert "CUDAExecutionProvider" in caught.value.problems[0].title


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="nothing here runs the format `zip`"):
        runners.runner(Artifact(tmp_path, Descriptor(format="zip")))


def test_without_a_gpu_a_plan_is_built_and_not_run() -> None:
    found = refusal(plan(), None)
    assert found.title == (
        "this machine has no NVIDIA GPU: a plan can be built and its structure checked here, but not run"
    )
    assert dict(found.facts)["plan"] == "TensorRT-RTX 1.7.1.116, for 8.6, 8.9"


def test_a_real_plan_is_refused_here(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    if gpu.first() is not None:
        pytest.skip("this machine has a GPU")
    sandbox = Sandbox(tmp_path)  # a process of its own: Polygraphy may be bound to the other TensorRT in this one
    source = graphs.product(tmp_path / "onnx", batch=2)
    (sandbox.root / "recipes" / "model.onnx").write_bytes(source.model_path.read_bytes())
    sandbox.recipe("onnx: {kind: onnx, path: model.onnx}\nplan: {kind: trt-plan, from: onnx, backend: rtx}")
    sandbox.built("plan")
    built = artifact.read(sandbox.path("plan").resolve())
    with pytest.raises(ProblemError, match="this machine has no NVIDIA GPU"):
        runners.runner(built)


def test_a_plan_runs_on_the_gpus_it_is_for() -> None:
    runners.require_device(plan(), L4)
    assert refusal(plan(), H200).title == "the plan is for compute capability 8.6, 8.9, and this GPU has 9.0"
    assert 'add "9.0"' in (refusal(plan(), H200).hint or "")


def test_a_portable_plan_runs_on_ampere_and_newer() -> None:
    portable = plan(compute_capabilities=["8.0+"])
    runners.require_device(portable, H200)
    runners.require_device(portable, Gpu("NVIDIA GB10", "12.1", "580"))
    assert "this GPU has 7.5" in refusal(portable, T4).title


def test_a_tensorrt_plan_is_its_gpus() -> None:
    tuned = plan(backend="tensorrt", compute_capabilities=["8.9"], gpu="NVIDIA L4")
    runners.require_device(tuned, L4)
    assert refusal(tuned, Gpu("NVIDIA L40", "8.9", "580")).title == "the plan is for another GPU"


def test_a_plan_of_another_version_is_refused_unless_it_is_compatible() -> None:
    runners.require_version(plan(), "1.7.1.116")
    with pytest.raises(ProblemError, match=r"made by TensorRT-RTX 1.7.1.116, and 1.8.0.1 is installed"):
        runners.require_version(plan(), "1.8.0.1")
    runners.require_version(plan(version_compatible=True), "1.8.0.1")


def test_the_profile_nearest_to_the_shapes_is_taken() -> None:
    assert runners.profile_for(plan(), {"x": (2, 3)}) == 0
    assert runners.profile_for(plan(), {"x": (40, 3)}) == 1
    with pytest.raises(ProblemError, match="no profile of the plan takes these shapes"):
        runners.profile_for(plan(), {"x": (65, 3)})
    with pytest.raises(ProblemError, match="no profile of the plan takes these shapes"):
        runners.profile_for(plan(), {"x": (1, 3, 1)})
