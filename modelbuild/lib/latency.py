"""How fast models are: in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelbuild.artifact import Artifact
from modelbuild.errors import problem
from modelbuild.lib import agreement, runners, sessions
from modelbuild.lib import gpu as gpus

PERCENTILES = (50, 90, 95, 99)


class Cell(msgspec.Struct, frozen=True):
    """One point of the grid. `sequence` is the size of every dimension that is not the batch."""

    batch: int
    sequence: int
    threads: int


class Times(msgspec.Struct, frozen=True):
    """A model's figures in one cell: milliseconds, and how many samples a second. `speedup` is over the baseline."""

    latency_mean: float
    latency_sd: float
    latency_min: float
    latency_max: float
    latency_p50: float
    latency_p90: float
    latency_p95: float
    latency_p99: float
    throughput: float
    speedup: float | None = None


class Loaded(msgspec.Struct, frozen=True):
    """What loading a model and running it once costs a process of its own: seconds, and bytes it held at most."""

    load_s: float
    peak_rss_bytes: int


def feeds(model: Artifact, cell: Cell) -> dict[str, Any]:
    """Made-up inputs of the cell's size."""
    inputs = model.descriptor.model().inputs
    return sessions.random_inputs(inputs, agreement.sizes(inputs, cell.batch, cell.sequence))


def cells(models: Sequence[Artifact], grid: Sequence[Cell]) -> list[Cell]:
    """The grid without the cells that are like an earlier one for every model: fixed sizes make them so."""
    seen, found = set(), []
    for cell in grid:
        shapes = tuple(tuple(a.shape for a in feeds(model, cell).values()) for model in models)
        if (shapes, cell.threads) not in seen:
            seen.add((shapes, cell.threads))
            found.append(cell)
    return found


def measure(
    models: Sequence[Artifact],
    cell: Cell,
    *,
    provider: runners.Provider,
    warmup: int,
    rounds: int,
    baseline: int | None,
    done: Callable[[int], None],
) -> list[Times]:
    """Every model's figures in one cell. Each round runs each model once, another one first each time.

    `speedup` is the median over the rounds of the baseline's time by the model's.
    """
    import contextlib

    inputs = [feeds(model, cell) for model in models]
    seconds = np.zeros((rounds, len(models)))
    runners.prepare(*models)
    with contextlib.ExitStack() as stack:
        running = []
        for model, given in zip(models, inputs, strict=True):
            profile = 0
            if model.descriptor.format == "trt-plan":
                profile = runners.profile_for(model.descriptor, {n: tuple(a.shape) for n, a in given.items()})
            made = runners.runner(model, provider=provider, threads=cell.threads, profile=profile)
            running.append(stack.enter_context(made))
        for number in range(-warmup, rounds):
            for place in range(len(models)):
                i = (place + number) % len(models)
                with sessions.failures("a model does not run at this size"):
                    running[i].infer(inputs[i])
                if number >= 0:
                    seconds[number, i] = running[i].last_inference_time()
            done(max(number + 1, 0))
    base = None if baseline is None else seconds[:, baseline]
    return [_times(seconds[:, i], cell.batch, base) for i in range(len(models))]


def _times(seconds: Any, batch: int, base: Any) -> Times:
    ms = seconds * 1000
    p50, p90, p95, p99 = (float(v) for v in np.percentile(ms, PERCENTILES))
    return Times(
        latency_mean=float(ms.mean()),
        latency_sd=float(ms.std()),
        latency_min=float(ms.min()),
        latency_max=float(ms.max()),
        latency_p50=p50,
        latency_p90=p90,
        latency_p95=p95,
        latency_p99=p99,
        throughput=batch / float(seconds.mean()),
        speedup=None if base is None else float(np.median(base / seconds)),
    )


def load(model: Artifact, cell: Cell, provider: runners.Provider) -> Loaded:
    """Load the model and run it once in a process of its own."""
    command = [sys.executable, "-P", "-m", "modelbuild.lib.load_probe", str(model.path), provider]
    command += [str(n) for n in (cell.threads, cell.batch, cell.sequence)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        cause = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise problem("a model does not load in a process of its own", cause=cause[:400], exit_code=ran.returncode)
    return msgspec.convert(json.loads(ran.stdout), Loaded)


def environment(provider: str) -> dict[str, Any]:
    """The machine that the figures hold for, without its name."""
    packages = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "numpy")
    found: Mapping[str, str | None] = {name: _version(name) for name in packages}
    gpu = gpus.first()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpu": gpu.name if gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name, version in found.items() if version},
        "provider": provider,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
