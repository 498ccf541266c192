"""What packing a large model costs: an ONNX file with GBs of external data, adopted and zipped by modelbuild.

`.venv/bin/python benchmarks/bigzip.py`; needs modelbuild's environment (onnx and numpy), about four times the model's
size in the temporary folder, and removes all it made. Exits 1 when the zip is not right, or when its worker read the
weights more than once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import meter
import numpy as np
import onnx
from meter import BenchmarkError, Cost
from onnx import TensorProto, helper

ROWS, WIDTH = 32768, 256
TABLE_BYTES = ROWS * WIDTH * 4
SLACK_BYTES = 200_000_000
"""What a worker reads beside the weights: Python, its libraries, and the small files."""
RECIPE = """targets:
  onnx:   {kind: onnx, path: model.onnx}
  bundle: {kind: zip, from: onnx}
"""


def write_model(folder: Path, tables: int) -> int:
    """A model that looks its ids up in many random tables and adds what it finds; the bytes of its weights."""
    data = "model.onnx.data"
    nodes, weights = [], []
    chance = np.random.default_rng(0)
    with (folder / data).open("wb") as file:
        for i in range(tables):
            block = chance.random((ROWS, WIDTH), dtype=np.float32)
            tensor = TensorProto(name=f"table{i}", data_type=TensorProto.FLOAT, dims=[ROWS, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data), ("offset", file.tell()), ("length", block.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(block.data)
            weights.append(tensor)
            nodes.append(helper.make_node("Gather", [f"table{i}", "input_ids"], [f"found{i}"]))
    nodes.append(helper.make_node("Sum", [f"found{i}" for i in range(tables)], ["last_hidden_state"]))
    shape = ["batch", "sequence"]
    model = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, WIDTH])],
        weights,
    )
    onnx.save(
        helper.make_model(model, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return tables * TABLE_BYTES


class Workers:
    """Sees what each process of a tree has read and its largest memory, until it is gone."""

    def __init__(self) -> None:
        self.read: dict[int, int] = {}
        self.driver = 0

    def __call__(self, pid: int) -> None:
        self.driver = self.driver or pid
        if pid != self.driver:
            self.read[pid] = max(self.read.get(pid, 0), meter.read_so_far(pid))


def build(python: Path, folder: Path, target: str) -> tuple[Cost, int]:
    """Build one target; what it cost, and the bytes its worker read."""
    workers = Workers()
    cost = meter.measure([python.with_name("modelbuild"), "build", target], folder, look=workers)
    if len(workers.read) != 1:
        raise BenchmarkError(f"`{target}` took {len(workers.read)} workers and not one:\n{cost.talk}")
    return cost, next(iter(workers.read.values()))


def check(folder: Path, size: int) -> None:
    """The weights in the zip are those of the model."""
    with zipfile.ZipFile(folder / "artifacts" / "big" / "bundle" / "model.zip") as package:
        (name,) = [n for n in package.namelist() if n.endswith(".data")]
        if package.getinfo(name).file_size != size:
            raise BenchmarkError(f"`{name}` has another size in the zip")
        with package.open(name) as packed, (folder / "recipes" / "model.onnx.data").open("rb") as given:
            if hashlib.file_digest(packed, "sha256").digest() != hashlib.file_digest(given, "sha256").digest():
                raise BenchmarkError(f"`{name}` is not what was packed")


def stages(python: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Target -> CPU-seconds and peak MB of its worker, by the records."""
    found = {}
    for target in ("onnx", "bundle"):
        cost = meter.measure([python.with_name("modelbuild"), "show", f"big:{target}", "--json"], folder)
        record = json.loads(cost.talk)[0]["record"]
        found[target] = record["cpu_s"], record["peak_rss_bytes"] / 1e6
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=2.15, help="GB of weights")
    options = parser.parse_args()
    python = Path(sys.executable)
    try:
        with tempfile.TemporaryDirectory(prefix="bigzip-") as temporary:
            folder = Path(temporary)
            (folder / "recipes").mkdir()
            (folder / "recipes" / "big.yaml").write_text(RECIPE)
            size = write_model(folder / "recipes", round(options.size * 1e9 / TABLE_BYTES))
            time.sleep(2.5)  # what was written just now is no longer young to the stat cache
            rows = []
            for words, target in (("adopt", "onnx"), ("zip", "bundle")):
                cost, worker = build(python, folder, target)
                meter.say(f"{words}: {cost.cpu_s:.1f} CPU-s, {cost.wall_s:.1f} s")
                in_all = cost.read_bytes
                figures = (worker / size, (in_all - worker) / size, cost.cpu_s, cost.peak_mb, cost.wall_s)
                rows.append([words, *(f"{figure:.2f}" for figure in figures[:3]), *(f"{f:.0f}" for f in figures[3:])])
            if worker > size + SLACK_BYTES:
                raise BenchmarkError(f"packing read {worker:,} bytes for {size:,} of weights")
            check(folder, size)
            cost = meter.measure([python.with_name("modelbuild"), "build", "big"], folder)
            rows.append(["no-op", "", f"{cost.read_bytes / size:.2f}", f"{cost.cpu_s:.2f}", f"{cost.peak_mb:.0f}", "0"])
            told = stages(python, folder)
    except BenchmarkError as e:
        meter.say(f"error: {e}")
        return 1
    packages = meter.versions(python, ("onnx", "onnxruntime"))
    sys.stdout.write(f"{meter.machine()}; {size / 1e9:.2f} GB of weights; {packages}.\n\n")
    head = ("build", "the worker read, in weights", "the driver read, in weights", "CPU-s", "peak MB", "wall s")
    sys.stdout.write(meter.table(head, rows))
    for target, (cpu, memory) in told.items():
        sys.stdout.write(f"\nworker of `{target}`: {cpu:.2f} CPU-s, {memory:.0f} MB")
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
