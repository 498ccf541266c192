"""Loads a model, runs it once, and prints what that took as JSON: a process of its own, so that memory is the model's.

`python -m modelbuild.lib.load_probe ARTIFACT PROVIDER THREADS BATCH SEQUENCE`; used by `modelbuild.lib.latency`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import cast

from modelbuild import artifact
from modelbuild.errors import ProblemError
from modelbuild.lib import latency, runners


def main(folder: str, provider: str, threads: str, batch: str, sequence: str) -> int:
    model = artifact.read(Path(folder))
    cell = latency.Cell(int(batch), int(sequence), int(threads))
    given = latency.feeds(model, cell)
    started = time.monotonic()
    try:
        with runners.runner(model, provider=cast(runners.Provider, provider), threads=cell.threads) as running:
            loaded = time.monotonic() - started
            running.infer(given)
    except ProblemError as e:
        sys.stderr.write(f"{e.problems[0].title}\n")
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"load_s": loaded, "peak_rss_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
