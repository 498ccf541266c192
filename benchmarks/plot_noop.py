"""Draws the tables of `noop.py` as an SVG: `python plot_noop.py docs/measurements/chain.md noop.svg`.

Needs matplotlib, and nothing of modelbuild.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "modelbuild"
from matplotlib import pyplot  # noqa: E402 - the backend comes first

HEAD = re.compile(r"\| (\d+) targets \| no-op CPU-s")


def figures(text: str) -> dict[str, dict[int, float]]:
    """Tool -> number of targets -> CPU-seconds of a build with nothing to do."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    size = None
    for line in text.splitlines():
        head = HEAD.match(line)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head:
            size = int(head[1])
        elif not line.startswith("|"):
            size = None
        elif size and not cells[0].startswith("-"):
            found[cells[0]][size] = float(cells[1])
    return found


def main(source: str, target: str) -> None:
    found = figures(Path(source).read_text())
    if not found:
        raise SystemExit(f"{source} has no table of noop.py")
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for tool, costs in sorted(found.items(), key=lambda item: -max(item[1].values())):
        ours = tool == "modelbuild"
        axes.plot(list(costs), list(costs.values()), marker="o", label=tool, linewidth=2.5 if ours else 1.2)
    axes.set(xscale="log", yscale="log", xlabel="targets", ylabel="CPU-seconds, nothing to do")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
