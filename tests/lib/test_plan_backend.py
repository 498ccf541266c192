"""Both TensorRTs through Polygraphy: RTX for real, TensorRT's path on the RTX libraries, which share its API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from modelbuild.errors import ProblemError
from modelbuild.lib import plan_backend, plan_failures, plan_timing
from modelbuild.lib.plan_backend import Backend
from modelbuild.lib.plan_progress import Phases
from tests import graphs

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'modelbuild[rtx]'")

REPOSITORY = Path(__file__).parents[2]
RTX = Backend("rtx", None, "1.7.1.116")

STAND_IN = """
import sys
import types

import tensorrt_rtx_bindings

tensorrt = types.ModuleType("tensorrt")
tensorrt.__dict__.update(vars(tensorrt_rtx_bindings), __version__="11.4.0.106", __name__="tensorrt")
sys.modules["tensorrt"] = tensorrt
"""
"""TensorRT cannot be installed here: its bindings need its libraries. The RTX bindings are of the same family."""


def run(code: str, *, cwd: Path) -> str:
    """What a Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tensorrts_path_runs_through_polygraphy(tmp_path: Path) -> None:
    """Strong typing, profiles, workspace, TF32, sparsity, verbosity, level and the timing cache, as the kind uses them.

    Everything but tuning and reading the engine back, which need a GPU.
    """
    graphs.conv(tmp_path / "onnx")
    told = run(
        STAND_IN
        + """
from pathlib import Path
from modelbuild.lib import plan_backend, plan_config, plan_log, plan_network, plan_profiles, plan_progress
from modelbuild.artifact import read

source = read(Path("onnx"))
backend = plan_backend.load("tensorrt")
profiles = plan_profiles.expand([{"batch": (1, 4, 8), "h": 8, "w": 8}], source.descriptor.model().inputs)
options = plan_config.Options(
    workspace_mib=64, optimization_level=2, tf32=False, sparse_weights=True, max_aux_streams=1,
    profiling_verbosity="layer_names_only", timing_cache=Path("timing.cache"),
)
steps = []
monitor = plan_progress.monitor(backend.trt, lambda done, total, what: steps.append(done))
with plan_log.listening() as heard:
    network = plan_network.parse(source.model_path, heard)
    config = plan_config.loader(backend, options, profiles, monitor)(*network[:2])
    trt = backend.trt
    print(backend.name, config.num_optimization_profiles, config.builder_optimization_level, config.max_aux_streams)
    print(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) >> 20, config.profiling_verbosity.name)
    print(config.get_flag(trt.BuilderFlag.TF32), config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS))
    print(network[1].get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
""",
        cwd=tmp_path,
    )
    lines = [line for line in told.splitlines() if not line.startswith("[")]
    assert lines == ["tensorrt 1 2 1", "64 LAYER_NAMES_ONLY", "False True", "True"]


def test_a_process_holds_one_tensorrt(tmp_path: Path) -> None:
    told = run(
        STAND_IN
        + """
from modelbuild.errors import ProblemError
from modelbuild.lib import plan_backend

plan_backend.load("rtx")
import polygraphy.config
try:
    plan_backend.load("tensorrt")
except ProblemError as e:
    print(e.problems[0].title)
""",
        cwd=tmp_path,
    )
    assert "this process already uses TensorRT-RTX: it cannot use TensorRT as well" in told


def test_tensorrt_without_its_package_is_told(tmp_path: Path) -> None:
    told = run(
        """
from modelbuild.errors import ProblemError
from modelbuild.lib import plan_backend

try:
    plan_backend.load("tensorrt")
except ProblemError as e:
    print(e.problems[0].title, e.problems[0].hint)
""",
        cwd=tmp_path,
    )
    assert told == "TensorRT is not installed pip install 'modelbuild[trt]'\n"


def test_bindings_without_libraries_are_told(tmp_path: Path) -> None:
    """What installing the bindings alone gives."""
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    told = run(
        """
import sys

sys.path.insert(0, ".")
from modelbuild.errors import ProblemError
from modelbuild.lib import plan_backend

try:
    plan_backend.load("tensorrt")
except ProblemError as e:
    print(e.problems[0].title, dict(e.problems[0].facts)["cause"])
""",
        cwd=tmp_path,
    )
    assert told.startswith("TensorRT is installed, but its libraries do not load libnvinfer.so.11")


def test_auto_is_rtx_where_there_is_no_tensorrt_or_no_gpu() -> None:
    assert plan_backend.resolve("auto") == "rtx"
    assert plan_backend.resolve("tensorrt") == "tensorrt"


@pytest.mark.parametrize(
    ("cause", "title"),
    [
        (
            "Cannot compile operation 'gemm' for Turing (SM75): FP32 GEMM is not supported.",
            "TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5",
        ),
        (
            "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3.",
            "the model has data types that not all of these GPUs have",
        ),
        (
            "Network has dynamic or shape inputs, but no optimization profile has been defined.",
            "the model has dynamic dimensions, and no profile says how large they get",
        ),
        ("CUDA initialization failure with error: 35", "the GPU cannot be used"),
        ("Requested amount of GPU memory could not be allocated: out of memory", "there is too little memory"),
        ("Could not find any implementation for node {ForeignNode[a...b]}", "no kernel of this GPU fits a node"),
        ("Something new", "TensorRT-RTX could not build the plan"),
    ],
)
def test_tensorrts_words_become_a_problem(cause: str, title: str) -> None:
    found = plan_failures.problem_of(cause, RTX)
    assert found.title.startswith(title)
    assert dict(found.facts)["cause"] == cause
    assert dict(found.facts)["version"] == "1.7.1.116"


def test_progress_goes_on_through_nested_phases() -> None:
    told: list[tuple[float, str]] = []
    phases = Phases(lambda done, total, what: told.append((round(done / total, 3), what)))
    phases.start("Building engine", 2)
    phases.start("Timing tactics", 4)
    phases.step("Timing tactics", 0)
    phases.step("Timing tactics", 1)
    phases.finish("Timing tactics")
    phases.step("Building engine", 0)
    phases.step("Timing tactics", 3)
    phases.finish("Building engine")
    assert told == [
        (0.0, "building engine"),
        (0.0, "timing tactics"),
        (0.125, "timing tactics"),
        (0.25, "timing tactics"),
        (0.5, "building engine"),
        (1.0, "building engine"),
    ]


def test_timing_caches_are_kept_by_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = plan_timing.path("10.16.1.11", "NVIDIA RTX 6000 Ada Generation")
    assert file == tmp_path / "modelbuild" / "timing" / "10.16.1.11-NVIDIA-RTX-6000-Ada-Generation.cache"
    assert plan_timing.told(file) == f"timing cache {file.name}: new"
    file.write_bytes(b"timings")
    assert "7 bytes" in plan_timing.told(file)


def test_polygraphy_is_told_which_one_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = plan_backend.load("rtx")
    assert str(backend) == f"TensorRT-RTX {backend.version}"
    with pytest.raises(ProblemError, match=r"this process already uses|TensorRT is not installed"):
        plan_backend.load("tensorrt")
