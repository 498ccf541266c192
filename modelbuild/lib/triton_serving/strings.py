"""Text inputs of a request, as Triton gives them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def decoded(array: NDArray[Any], name: str) -> list[str]:
    """The strings of an input of shape (rows, 1); a `ValueError` for bytes that are no UTF-8."""
    try:
        return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in array.reshape(-1)]
    except UnicodeDecodeError as e:
        raise ValueError(f"`{name}` is not UTF-8: {e.reason} at byte {e.start}") from None
