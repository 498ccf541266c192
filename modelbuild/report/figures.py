"""What was measured of an artifact: its descriptor's figures, the build's, and the tables that kinds write.

Verified, ranked and tuned models pass through with their files, so which table is an artifact's own is told by the kind
that made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from modelbuild import artifact
from modelbuild.errors import problem
from modelbuild.record import Record

Table = TypeVar("Table")


class Bound(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a `verified` requires of a figure."""

    min: float | None = None
    max: float | None = None
    max_loss: float | None = None


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model's figures at one size, in milliseconds and samples a second."""

    batch: int
    sequence: int
    threads: int
    latency_p50: float
    latency_p99: float
    throughput: float
    speedup: float | None = None

    @property
    def size(self) -> str:
        return f"{self.batch}x{self.sequence}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model of a benchmark."""

    name: str
    cells: tuple[Cell, ...]
    size_bytes: int | None = None
    load_s: float | None = None
    peak_rss_bytes: int | None = None


class Benchmark(msgspec.Struct, frozen=True, omit_defaults=True):
    """`benchmark.json`. `environment` is the machine that it holds for."""

    environment: dict[str, Any]
    candidates: tuple[Candidate, ...]

    @property
    def machine(self) -> str:
        """The machine in words."""
        given = self.environment
        parts = [given.get("gpu") if given.get("provider") == "cuda" else None, given.get("cpu")]
        return ", ".join([str(p) for p in parts if p] + [f"{given.get('cores')} cores"])


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """A candidate of `models_rank.json` or `tuned.json`; without a rank it missed a threshold."""

    name: str
    figures: dict[str, float]
    why: str
    rank: int | None = None
    pareto: bool = False


class _Ranks(msgspec.Struct, frozen=True):
    models: tuple[Place, ...]


class _Tuned(msgspec.Struct, frozen=True):
    candidates: tuple[Place, ...]


class _Verified(msgspec.Struct, frozen=True):
    figures: dict[str, float]


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that was measured of an artifact; `figures` has everything by a name of its own."""

    size: int
    figures: dict[str, float] = {}
    bounds: dict[str, Bound] = {}
    benchmark: Benchmark | None = None
    places: tuple[Place, ...] = ()


def of(record: Record, out: Path) -> Measured:
    """What was measured of the artifact in the folder `out`; a `ProblemError` when a table is not understood."""
    figures = dict(artifact.read(out).descriptor.metrics)
    bounds: dict[str, Bound] = {}
    benchmark, places = None, tuple[Place, ...]()
    match record.manifest.kind:
        case "verified":
            figures |= _table(out / "verified.json", _Verified).figures
            bounds = msgspec.convert(record.manifest.options.get("require", {}), dict[str, Bound])
        case "benchmark":
            benchmark = _table(out / "benchmark.json", Benchmark)
            figures |= dict(_of_benchmark(benchmark))
        case "ranked":
            places = _table(out / "models_rank.json", _Ranks).models
        case "tuned":
            places = _table(out / "tuned.json", _Tuned).candidates
        case _:
            pass
    for place in places:
        figures |= {f"{place.name} {name}": value for name, value in place.figures.items()}
        figures |= {f"{place.name} rank": float(place.rank)} if place.rank is not None else {}
    figures |= {name: told.value for name, told in record.metrics.items()}
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    return Measured(record.size, finite, bounds, benchmark, places)


def _table(path: Path, kind: type[Table]) -> Table:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError) as e:
        hint = "build it again: `modelbuild clean` of the target and another build"
        raise problem(f"`{path.name}` is not understood", path=path, cause=e, hint=hint) from None


def _of_benchmark(table: Benchmark) -> Iterator[tuple[str, float]]:
    for model in table.candidates:
        for cell in model.cells:
            for name in ("latency_p50", "latency_p99", "throughput", "speedup"):
                if (value := getattr(cell, name)) is not None:
                    yield f"{model.name} {cell.size} {name}", value
        for name in ("size_bytes", "load_s", "peak_rss_bytes"):
            if (value := getattr(model, name)) is not None:
                yield f"{model.name} {name}", float(value)


def number(value: float | None) -> str:
    """A figure as people read it."""
    return "" if value is None else f"{value:.6g}"


def change(old: float | None, new: float | None) -> str:
    """What became of a figure: `+0.0012`, nothing where it is the same or there is nothing to compare."""
    if old is None or new is None or old == new:
        return ""
    return f"{new - old:+.3g}" if abs(new - old) < 1000 else f"{new - old:+.0f}"


def percent(old: float | None, new: float | None) -> str:
    """What became of an amount, as a part of what it was: `-1.2 %`; nothing for less than a twentieth of a percent."""
    if not old or new is None or abs(new - old) < old / 2000:
        return ""
    return f"{(new - old) / old * 100:+.1f} %"
