"""Draws what `quality.py --json` wrote: how near to fp32 each model is, over its size and over its speed.

`python plot_quality.py quality.json quality.svg`; needs matplotlib.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "modelbuild"
from matplotlib import pyplot  # noqa: E402 - the backend comes first

TOOLS = ("ours", "ONNX Runtime", "Olive", "optimum-onnx", "modelopt")


def main(figures: Path, out: Path) -> None:
    rows = [
        row for row in json.loads(figures.read_text()) if "failed" not in row and not row["model"].startswith("fp32")
    ]
    drawn, axes = pyplot.subplots(1, 2, figsize=(11, 5), sharey=True)
    for tool in TOOLS:
        own = [row for row in rows if row["model"].startswith(tool)]
        distance = [max(1 - row["cosine"], 1e-5) for row in own]
        for axis, values in ((axes[0], [row["mb"] for row in own]), (axes[1], [_speed(row) for row in own])):
            axis.scatter(values, distance, label=tool, marker="o" if tool == "ours" else "x")
    axes[0].set(xlabel="size in MB", ylabel="1 - cosine to fp32 (held-out texts)", yscale="log")
    axes[1].set(xlabel="speed-up over fp32, one thread, mean of the three shapes")
    for axis in axes:
        axis.grid(visible=True, alpha=0.3)
    axes[1].legend()
    drawn.tight_layout()
    drawn.savefig(out, metadata={"Date": None})


def _speed(row: dict[str, Any]) -> float:
    return statistics.geometric_mean(row["speed_up"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
