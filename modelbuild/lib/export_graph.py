"""A graph to export: a module that takes tensors by place, its inputs and outputs, and what it must compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.errors import problem


class Port(msgspec.Struct, frozen=True):
    """An input or output of the graph: its name, and the names of its dynamic axes by place.

    `past_sequence + sequence` names an axis that is as long as those two together.
    """

    name: str
    axes: Mapping[int, str]


class Case(msgspec.Struct, frozen=True):
    """Inputs by name, and the outputs in order that the source model gives for them (numpy arrays)."""

    name: str
    feeds: Mapping[str, Any]
    expected: Sequence[Any]


class Graph(msgspec.Struct, frozen=True):
    """One component of the model. `sample` is what it is traced with: numpy arrays in the order of `inputs`."""

    name: str
    module: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sample: Mapping[str, Any]
    cases: tuple[Case, ...]


def running(torch: Any, model: Any, inputs: Mapping[str, Any], what: str, **options: Any) -> Any:
    """The source model's own result for numpy `inputs` and other `options`; a `ProblemError` when it refuses them."""
    tensors = {n: torch.from_numpy(v) for n, v in inputs.items()}
    try:
        with torch.inference_mode():
            return model(**tensors, **options)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as e:
        raise problem(
            f"the checkpoint's `{type(model).__name__}` does not run on inputs of shape {what}",
            cause=" ".join(str(e).split())[:400] or repr(e),
            hint="is its `config.json` complete (`pad_token_id`, sizes)?",
        ) from e
