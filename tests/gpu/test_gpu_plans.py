"""Plans on a real GPU: built, loaded, run and compared with ONNX Runtime; skipped, with the reason, without one.

Seen so far: nothing. No GPU was at hand when these were written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from modelbuild.lib import gpu
from tests import graphs

REPOSITORY = Path(__file__).parents[2]
MODULES = {"rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu.first() is None, reason="this machine has no NVIDIA GPU: plans are built here, but not run"),
]


@pytest.mark.parametrize("backend", ["rtx", "tensorrt"])
def test_a_plan_computes_what_onnx_runtime_does(backend: str, tmp_path: Path) -> None:
    if find_spec(MODULES[backend]) is None:
        pytest.skip(f"`{MODULES[backend]}` is not installed")
    model = graphs.product(tmp_path / "onnx")
    result = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--onnx", str(model.model_path), "--backends", backend]
    command += ["--shapes", "1x1", "8x1", "--repeats", "20", "--tolerance", "0.01", "--json", str(result)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in json.loads(result.read_text())["rows"] if row["what"].startswith(backend)]
    assert [row["shape"] for row in rows] == ["1x1", "8x1"] * 2
    assert all(row["cosine"] > 0.999 for row in rows)
