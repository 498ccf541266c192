"""From observations to a range, and smoothing factors, for every activation that is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modelbuild.lib import histograms
from modelbuild.lib import smoothing as smoothing_module
from modelbuild.lib.calibration import Batch, Observed, Probe
from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.qdq import Plan
from modelbuild.lib.quantizable import Convolution, Linear

WORTH = 0.9
"""Smoothing costs a multiplication at run time: it is left out where the predicted error stays above this share."""


def channels(graph: Graph, found: Sequence[Linear | Convolution], *, outputs: bool) -> dict[str, int | None]:
    """The activations to observe: name -> its last axis, None for what is observed as a whole (images, results)."""
    watched: dict[str, int | None] = {}
    for each in found:
        width = int(graph.constants[each.weight].shape[0]) if isinstance(each, Linear) else None
        watched[each.input] = width
    for each in found:
        # A convolution's kernel takes its scale from the result's codes; what comes after reads them as well.
        if outputs or isinstance(each, Convolution):
            watched.setdefault(each.output, None)
    return watched


def smoothing_groups(found: Sequence[Linear | Convolution]) -> list[tuple[list[str], list[str]]]:
    """(activations, weights) that need one s: those linked by shared weights. None that a convolution reads."""
    whole = {each.input for each in found if isinstance(each, Convolution)} | {each.output for each in found}
    linear = [each for each in found if isinstance(each, Linear) and each.input not in whole]
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for each in linear:
        leader[find("w:" + each.weight)] = find("a:" + each.input)
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for each in linear:
        activations, weights = groups.setdefault(find("a:" + each.input), ([], []))
        if each.input not in activations:
            activations.append(each.input)
        if each.weight not in weights:
            weights.append(each.weight)
    return list(groups.values())


def smoothing(
    graph: Graph,
    found: Sequence[Linear | Convolution],
    observed: Mapping[str, Observed],
    alpha: float | None,
    *,
    per_channel: bool,
) -> dict[str, Any]:
    """s [K] for each activation that is worth smoothing; see `modelbuild.lib.smoothing.factors`."""
    import numpy as np

    chosen = {}
    for activations, weights in smoothing_groups(found):
        seen = [observed[a] for a in activations]
        power = np.mean([np.square(o.rows).mean(axis=0) for o in seen], axis=0)
        low = np.min([o.low for o in seen], axis=0)
        high = np.max([o.high for o in seen], axis=0)
        stats = smoothing_module.Channels(low, high, power)
        values = [graph.constants[w] for w in weights]
        factors, remaining = smoothing_module.factors(stats, values, alpha, per_channel=per_channel)
        if alpha is not None or remaining < WORTH:
            chosen.update(dict.fromkeys(activations, factors))
    return chosen


def extremes(observed: Mapping[str, Observed], factors: Mapping[str, Any]) -> dict[str, Plan]:
    """Each activation's range as it was observed, after smoothing."""
    plans = {}
    for name, each in observed.items():
        s = factors.get(name)
        low, high = (each.low, each.high) if s is None else (each.low / s, each.high / s)
        plans[name] = Plan(float(low.min()), float(high.max()), s)
    return plans


def by_histogram(
    probe: Probe,
    batched: Iterable[Batch],
    plans: Mapping[str, Plan],
    *,
    method: str,
    percent: float,
    step: Callable[[int], None],
) -> dict[str, Plan]:
    """Narrower ranges from a second pass over the data; `plans` holds the extremes and the smoothing."""
    counted = {name: histograms.Histogram(p.low, p.high) for name, p in plans.items()}
    done = 0
    for count, feeds in batched:
        for name, values in probe.values(feeds).items():
            s = plans[name].factors
            counted[name].add(values if s is None else values / s)
        done += count
        step(done)
    chosen = histograms.ranges(counted, method, percent)
    return {name: Plan(*chosen[name], plans[name].factors) for name in plans}
