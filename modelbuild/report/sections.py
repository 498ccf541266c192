"""Tables of what was measured, for a terminal and for Markdown: requirements, benchmarks, candidates in their order."""

from __future__ import annotations

import msgspec

from modelbuild.report.figures import Benchmark, Bound, Measured, change, number, percent

SAME_MACHINE = ("cpu", "cores", "gpu", "provider")
"""Where these differ, milliseconds are not compared."""


class Section(msgspec.Struct, frozen=True):
    """A titled table; `note` says what it holds for."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    labels: tuple[str, ...] = ()
    """The columns that are named after figures."""


def sections(now: Measured, before: Measured | None) -> list[Section]:
    """The tables of an artifact, with the change against an earlier one."""
    found = []
    if now.bounds:
        found.append(_requirements(now, before))
    if now.benchmark is not None:
        found.append(_benchmark(now.benchmark, before.benchmark if before else None))
    if now.places:
        found.append(_places(now, before))
    return found


def _requirements(now: Measured, before: Measured | None) -> Section:
    rows = []
    for name, bound in now.bounds.items():
        value, old = now.figures.get(name), before.figures.get(name) if before else None
        required = _required(bound, now.figures.get(f"reference.{name}"))
        rows.append((name, required, number(value), change(old, value)))
    return Section("required", ("figure", "required", "measured", "change"), tuple(rows))


def _required(bound: Bound, reference: float | None) -> str:
    """`at least 0.9, within 1 % of the reference's 0.95`."""
    parts = [
        *([f"at least {bound.min:g}"] if bound.min is not None else []),
        *([f"at most {bound.max:g}"] if bound.max is not None else []),
    ]
    if bound.max_loss is not None:
        parts.append(f"within {bound.max_loss * 100:g} % of the reference's {number(reference)}".rstrip())
    return ", ".join(parts)


def _benchmark(now: Benchmark, before: Benchmark | None) -> Section:
    same = before is not None and all(now.environment.get(f) == before.environment.get(f) for f in SAME_MACHINE)
    earlier = {(m.name, c.size): c for m in before.candidates for c in m.cells} if before else {}
    rows = []
    for model in now.candidates:
        for cell in model.cells:
            old = earlier.get((model.name, cell.size))
            rows.append(
                (
                    model.name,
                    cell.size,
                    f"{cell.latency_p50:.4g}",
                    percent(old.latency_p50, cell.latency_p50) if old and same else "",
                    f"{cell.latency_p99:.4g}",
                    f"{cell.throughput:.4g}",
                    "" if cell.speedup is None else f"{cell.speedup:.3g}",
                    change(old.speedup, cell.speedup) if old else "",
                )
            )
    head = ("model", "batch x sequence", "p50 ms", "change", "p99 ms", "samples/s", "speedup", "change")
    return Section("measured", head, tuple(rows), f"on {now.machine}")


def _places(now: Measured, before: Measured | None) -> Section:
    labels = list(dict.fromkeys(label for place in now.places for label in place.figures))
    ranks = {place.name: _rank(place.rank) for place in before.places} if before else {}
    rows = []
    for place in now.places:
        rank = _rank(place.rank)
        was = ranks.get(place.name, rank)
        shown = rank if was == rank else f"{rank} (was {was})"
        front = "yes" if place.pareto else ""
        rows.append((shown, place.name, *(number(place.figures.get(n)) for n in labels), front, place.why))
    return Section("candidates", ("rank", "model", *labels, "Pareto front", "why"), tuple(rows), labels=tuple(labels))


def _rank(rank: int | None) -> str:
    return "out" if rank is None else str(rank)
