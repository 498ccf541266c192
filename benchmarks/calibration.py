"""What measuring activation ranges costs: our calibration beside ONNX Runtime's, on the same model and batches.

Run it as `python -m benchmarks.calibration` from the repository; it needs the extras `cpu` and `export`. Each side runs
in a process of its own, in turns, over the exported MiniLM and the 128 texts of `recipes/data/sentences.jsonl`, those
of one length together and unpadded; for histograms all padded to 128 tokens, since ONNX Runtime's take no other. CPU
time is that of reading the model and calibrating; peak memory the process's. Exits 1 where `minmax` ranges differ.

The other ranges differ by definition: of what `percentile` leaves out ours cuts one half at each end, ONNX Runtime's
all of it by magnitude.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import meter, quality
from modelbuild import artifact

METHODS = ("minmax", "percentile", "entropy")
PERCENT = 99.999
PADDED = 128
CLOSE = 1e-4
"""How far the ends of ranges may be apart, relative to the range."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        which, method, *paths = given.side
        model, data, out = map(Path, paths)
        side = {"ours": ours, "ONNX Runtime": stock}[which]
        started = time.process_time()
        ranges = side(model, data, method)
        took = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        out.write_text(json.dumps({"cpu_s": took, "peak_mb": peak, "ranges": ranges}))
        return 0
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), given.rounds)


def compare(folder: Path, rounds: int) -> int:
    made = quality.chain(folder)
    rows, code = [], 0
    for method in METHODS:
        seen: dict[str, list[Any]] = {"ours": [], "ONNX Runtime": []}
        for turn in range(rounds):
            for which in sorted(seen, reverse=bool(turn % 2)):
                out = folder / "side.json"
                command = [sys.executable, "-m", "benchmarks.calibration", "--side", which, method]
                paths = [made["onnx"].model_path, made["sentences"].path, out]
                quality.run_apart([*command, *map(str, paths)], folder / "log.txt")
                seen[which].append(json.loads(out.read_text()))
                meter.say(f"{method}, {which}: {seen[which][-1]['cpu_s']:.2f} CPU-s")
        mine, theirs = (seen[which][-1]["ranges"] for which in seen)
        apart = max(_apart(mine[name], theirs[name]) for name in mine)
        code |= int(method == "minmax" and apart > CLOSE)
        cost = {which: statistics.median(s["cpu_s"] for s in found) for which, found in seen.items()}
        peak = {which: statistics.median(s["peak_mb"] for s in found) for which, found in seen.items()}
        rows.append(
            [
                method,
                *(f"{cost[w]:.2f}" for w in seen),
                f"{cost['ONNX Runtime'] / cost['ours']:.2f}",
                *(f"{peak[w]:.0f}" for w in seen),
                f"{apart:.1e}",
            ]
        )
    head = [
        "ranges by",
        "ours, CPU-s",
        "ONNX Runtime, CPU-s",
        "times",
        "ours, peak MB",
        "ONNX Runtime, peak MB",
        "apart",
    ]
    sys.stdout.write(meter.table(head, rows))
    return code


def _apart(mine: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / (theirs[1] - theirs[0])


def _opened(model: Path, data: Path, method: str) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    """The graph, its products, and the batches."""
    from modelbuild.lib import calibration, onnx_files, quantizable, samples
    from modelbuild.lib.onnx_graph import Graph

    graph = Graph(onnx_files.load(model))
    quantizable.name_nodes(graph)
    quantizable.fold_views(graph)
    found = quantizable.linearize(graph, quantizable.candidates(graph))
    inputs = {t.name: (t.dtype, t.shape) for t in onnx_files.component(onnx_files.load(model, weights=False)).inputs}
    read = samples.of(artifact.read(data))
    if method == "minmax":
        batches = [feeds for _, feeds in calibration.batches(read, inputs, 8, None)]
    else:
        batches = list(read.batches(8, pad=PADDED, names=list(inputs)))
    return graph, found, batches


def ours(model: Path, data: Path, method: str) -> dict[str, list[float]]:
    """Activation -> its lowest and highest, unsmoothed."""
    from modelbuild.lib import calibration, ranges

    graph, found, batches = _opened(model, data, method)
    channels = ranges.channels(graph, found, outputs=False)

    def batched() -> Any:
        return ((len(feeds["input_ids"]), feeds) for feeds in batches)

    tokens = sum(feeds["input_ids"].size for feeds in batches)
    observed = calibration.observe(calibration.Probe(graph, channels), batched(), tokens=tokens, step=lambda done: None)
    plans = ranges.extremes(observed, {})
    if method != "minmax":
        probe = calibration.Probe(graph, channels, whole=True)
        plans = ranges.by_histogram(probe, batched(), plans, method=method, percent=PERCENT, step=lambda done: None)
    return {name: [plan.low, plan.high] for name, plan in plans.items()}


def stock(model: Path, data: Path, method: str) -> dict[str, list[float]]:
    """The same by ONNX Runtime's calibrators, for the same activations."""
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    graph, found, batches = _opened(model, data, method)
    wanted = {each.input for each in found}
    del graph

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    known = quantization.CalibrationMethod
    methods = {"minmax": known.MinMax, "percentile": known.Percentile, "entropy": known.Entropy}
    options = {"percentile": PERCENT} if method == "percentile" else {}
    with tempfile.TemporaryDirectory() as name:
        augmented = str(Path(name) / "augmented.onnx")
        calibrator = create_calibrator(
            str(model), ["MatMul", "Gemm"], augmented, methods[method], extra_options=options
        )
        calibrator.collect_data(Reader())
        tensors = calibrator.compute_data().data
    return {name: [float(np.ravel(end)[0]) for end in tensors[name].range_value] for name in wanted}


if __name__ == "__main__":
    sys.exit(main())
