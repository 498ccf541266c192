"""How far TensorRT's builder is: its progress monitor's nested phases as one fraction that never goes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Say = Callable[[float, float, str], None]


class Phases:
    """The open phases, outermost first, each with its steps; pure, so that it can be tried without TensorRT."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._open: dict[str, list[int]] = {}
        self._shown = 0.0

    def start(self, name: str, steps: int) -> None:
        self._open[name] = [0, max(1, steps)]
        self._tell()

    def step(self, name: str, step: int) -> None:
        if name in self._open:
            self._open[name][0] = step + 1
            self._tell()

    def finish(self, name: str) -> None:
        if self._open.pop(name, None) is not None and not self._open:
            self._say(1.0, 1.0, name.lower())

    def _tell(self) -> None:
        """The outermost phase's part, refined by the inner ones."""
        done, share = 0.0, 1.0
        for finished, steps in self._open.values():
            done += share * min(finished, steps) / steps
            share /= steps
        self._shown = max(self._shown, min(done, 0.999))
        self._say(self._shown, 1.0, list(self._open)[-1].lower())


def monitor(trt: Any, say: Say) -> Any:
    """An `IProgressMonitor` that tells `say`; keep a reference to it for as long as the build lasts."""
    phases = Phases(say)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ProgressMonitor.html"""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
