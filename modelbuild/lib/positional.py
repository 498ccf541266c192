"""A transformers model as a module that takes its inputs by place: the form that PyTorch's exporters trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PREFIX = "model."
"""What the wrapper puts before the parameters' names."""


def positional(torch: Any, model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The model as a module that takes its inputs by place and returns just the wanted outputs."""
    return wrapped(
        torch,
        model,
        lambda *values: _wanted(model(**dict(zip(inputs, values, strict=True)), return_dict=True), outputs),
    )


def wrapped(torch: Any, model: Any, forward: Any) -> Any:
    """A module in eval mode that holds `model` (its parameters' names after `PREFIX`) and calls `forward`."""

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return forward(*values)

    return Wrapped().eval()


def _wanted(result: Any, outputs: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(result, name) for name in outputs)
