"""Which products cost a quantized model its accuracy: each stays in floats by itself, and outputs are compared again.

What several products cost is about the sum of what each costs (measured on MiniLM), so those to spare are the first of
the list, and it tells how many, to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from modelbuild.lib import agreement, calibration
from modelbuild.lib.calibration import Batch
from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.quantizable import Convolution, Linear

Found = Sequence[Linear | Convolution]


class Cost(msgspec.Struct, frozen=True):
    """A product by its node's name in the float graph, and by how much the outputs' mean cosine grows without it."""

    node: str
    cosine: float


def costs(
    graph: Graph,
    found: Found,
    names: Sequence[str],
    write: Callable[[Graph, Found], None],
    references: Sequence[tuple[dict[str, Any], list[Any]]],
    step: Callable[[int], None],
) -> tuple[float, list[Cost]]:
    """The mean cosine with everything quantized, and what each product costs, the dearest first.

    `graph` is in floats yet, and stays so; `names` are those of `found`. `write` quantizes some products in place.
    `references` are inputs and the float graph's outputs. `step` hears how many products were tried.
    """

    def likeness(chosen: Found) -> float:
        copied, moved = _copied(graph, chosen)
        write(copied, moved)
        batches: list[Batch] = [(0, feeds) for feeds, _ in references]
        got = calibration.outputs(copied, batches)
        pairs = zip(references, got, strict=True)
        return sum(
            min(agreement.cosine(a, b) for a, b in zip(expected, outputs, strict=True))
            for (_, expected), (_, outputs) in pairs
        ) / len(references)

    everything = likeness(found)
    seen = []
    for place, name in enumerate(names):
        seen.append(Cost(name, likeness([*found[:place], *found[place + 1 :]]) - everything))
        step(place + 1)
    return everything, sorted(seen, key=lambda cost: -cost.cosine)


def to_spare(everything: float, ordered: Sequence[Cost], least: float) -> int:
    """How many of the dearest to leave in floats for a cosine of `least`, if costs add up."""
    reached, count = everything, 0
    while reached < least and count < len(ordered):
        reached += max(ordered[count].cosine, 0.0)
        count += 1
    return count


def _copied(graph: Graph, found: Found) -> tuple[Graph, list[Linear | Convolution]]:
    """A graph of its own nodes with the same constants, and `found` in it."""
    copied, places = graph.copy()
    return copied, [msgspec.structs.replace(each, node=places[id(each.node)]) for each in found]
