"""A transformers model as a module that takes its inputs by place: the form that PyTorch's exporters trace."""

from __future__ import annotations

from typing import Any

PREFIX = "model."
"""What the wrapper puts before the parameters' names."""


def positional(torch: Any, model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """The model as a module that takes its inputs by place and returns just the wanted outputs."""

    class Positional(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            result = self.model(**dict(zip(inputs, values, strict=True)), return_dict=True)
            return tuple(getattr(result, name) for name in outputs)

    return Positional().eval()
