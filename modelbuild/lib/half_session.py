"""A float16 model run as the float32 model it came from: float32 inputs in, float32 outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelbuild.artifact import Tensor
from modelbuild.lib import agreement, sessions
from modelbuild.lib.agreement import Difference


class HalfSession:
    """An ONNX Runtime session that casts what it is given to what its graph wants."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._halves = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs, float16 ones as float32."""
        import numpy as np

        given = {n: a.astype(np.float16) if n in self._halves else a for n, a in feeds.items()}
        got = self._session.run(list(names), given)
        return [np.asarray(a).astype(np.float32) if np.asarray(a).dtype == np.float16 else a for a in got]


def on_cases(reference: Any, other: HalfSession, inputs: Sequence[Tensor]) -> Difference:
    """The largest difference of two sessions on made-up inputs of several shapes, padded on either side."""
    return agreement.largest_difference(reference, other, inputs, shown_only=True)


def on_samples(reference: Any, other: HalfSession, feeds: Sequence[dict[str, Any]]) -> Difference:
    """The largest difference of two sessions on given inputs."""
    import numpy as np

    names = [o.name for o in reference.get_outputs()]
    worst = Difference(names[0], "none", 0.0)
    for number, each in enumerate(feeds):
        with sessions.failures("the model does not run on the calibration data"):
            expected = reference.run(names, each)
            got = other.run(names, each)
        for name, a, b in zip(names, expected, got, strict=True):
            relative = agreement.relative_difference(np.asarray(a), np.asarray(b))
            if relative > worst.relative:
                worst = Difference(name, f"sample {number}", relative)
    return worst
