"""A model above 2 GB through every stage: what each costs, and how its peak memory compares with the model's size.

`.venv/bin/python benchmarks/big.py [--layers 20]`; needs the extras `cpu` and `export`, 20 GB of disk and 16 GB of
memory.
The model is a BERT of random weights, made here. Each stage checks its own result: `onnx` against PyTorch, `fused`,
`fp16`, `int8` and `int4` against their input; the archive is opened again and its model run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import meter

RECIPE = """\
targets:
  checkpoint: {kind: checkpoint, path: big}
  onnx:  {kind: onnx, from: checkpoint, task: feature-extraction}
  fused: {kind: fused, from: onnx}
  fp16:  {kind: fp16, from: onnx}
  int8:  {kind: int8, from: fused}
  int4:  {kind: int4, from: onnx}
  zip:   {kind: zip, from: fused}
  repo:  {kind: triton-repo, from: onnx, text: false}
  image: {kind: dockerfile, from: onnx, text: false}
"""
MAKE = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.BertConfig(
    hidden_size=1536, intermediate_size=6144, num_attention_heads=24, num_hidden_layers=int(sys.argv[2])
)
transformers.BertModel(config, add_pooling_layer=False).eval().save_pretrained(sys.argv[1], max_shard_size="1GB")
"""
STAGES = ("checkpoint", "onnx", "fused", "fp16", "int8", "int4", "zip", "repo", "image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=20)
    layers = parser.parse_args().layers
    with tempfile.TemporaryDirectory(prefix="big-") as name:
        folder = Path(name)
        (folder / "recipes").mkdir()
        (folder / "recipes" / "big.yaml").write_text(RECIPE)
        meter.say("making the model")
        meter.measure([sys.executable, "-c", MAKE, folder / "recipes" / "big", str(layers)], folder)
        weights = sum(f.stat().st_size for f in (folder / "recipes" / "big").glob("*.safetensors"))
        rows = [row(folder, stage, weights) for stage in STAGES]
        opened(folder)
        sys.stdout.write(f"{weights / 1e9:.2f} GB of weights\n\n")
        head = ["stage", "wall s", "CPU-s", "peak MB", "peak / weights", "MB made", "driver's peak MB"]
        sys.stdout.write(meter.table(head, rows))


def row(folder: Path, stage: str, weights: int) -> list[str]:
    """Build one stage; what its worker and the driver took."""
    meter.say(stage)
    command = [sys.executable, "-m", "modelbuild", "build", "--json", stage]
    cost = meter.measure(command, folder)
    built = [
        e for line in cost.talk.splitlines() if line.startswith("{") and (e := json.loads(line))["event"] == "built"
    ]
    (event,) = built
    record = _record(folder, event["key"])
    peak = record["peak_rss_bytes"]
    idle = meter.measure(command, folder)
    return [
        stage,
        f"{record['wall_s']:.1f}",
        f"{record['cpu_s']:.1f}",
        f"{peak / 1e6:.0f}",
        f"{peak / weights:.2f}",
        f"{event['size'] / 1e6:.0f}",
        f"{idle.peak_mb:.0f}",
    ]


def _record(folder: Path, key: str) -> Any:
    """A record, behind the line with its digest."""
    text = (folder / "artifacts" / ".store" / key / "record.json").read_text()
    return json.loads(text.partition("\n")[2])


def opened(folder: Path) -> None:
    """Unpack the archive and run its sample; `BenchmarkError` where that fails."""
    place = folder / "unpacked"
    (archive,) = (folder / "artifacts" / "big" / "zip").glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(place)
    code = """
import sys, glob, numpy, onnxruntime
(path,) = glob.glob(sys.argv[1] + "/**/*.onnx", recursive=True)
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
ids = numpy.ones((1, 5), "int64")
given = {i.name: ids for i in session.get_inputs()}
assert numpy.isfinite(session.run(None, given)[0]).all()
"""
    meter.measure([sys.executable, "-c", code, place], folder)


if __name__ == "__main__":
    try:
        main()
    except (meter.BenchmarkError, subprocess.SubprocessError) as e:
        meter.say(str(e))
        sys.exit(1)
