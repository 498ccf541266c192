"""ONNX Runtime's sessions of one graph: all cores for a request that is alone, one core each when there are several."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "gpu": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class Sessions:
    """Runs a graph on a device, from several threads.

    On a CPU and with `threads` 0 there are two sessions: one of all `cores`, for the lowest latency of a request that
    runs alone, and one of a single thread, which costs the least where several run at once. Each holds the weights.
    """

    def __init__(self, file: Path, device: str, threads: int, cores: int) -> None:
        two = device == "cpu" and threads == 0 and cores > 1
        self.wide = opened(file, device, threads or cores)
        self.narrow = opened(file, device, 1) if two else self.wide
        self.active = 0
        self.lock = threading.Lock()

    def run(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        with self.lock:
            self.active += 1
            session = self.wide if self.active == 1 else self.narrow
        try:
            return list(session.run(list(names), dict(inputs)))
        finally:
            with self.lock:
                self.active -= 1


def opened(file: Path, device: str, threads: int) -> Any:
    """A session on the device; a `RuntimeError` where ONNX Runtime fell back to another."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; its own lines are no JSON
    # Threads wait for each other's work awake, but for no longer than a run lasts.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    wanted = PROVIDERS[device]
    session = onnxruntime.InferenceSession(str(file), options, providers=wanted)
    if session.get_providers()[0] != wanted[0]:
        raise RuntimeError(f"ONNX Runtime does not run {file.name} on {wanted[0]}, but on {session.get_providers()[0]}")
    return session
