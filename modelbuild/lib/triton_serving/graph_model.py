"""A model that runs an ONNX graph with ONNX Runtime in Python, for servers without the onnxruntime backend."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:  # outside of the server
    pb_utils = None

MODEL = "model.onnx"
LEVELS = {"-1": "ORT_ENABLE_BASIC", "0": "ORT_DISABLE_ALL", "1": "ORT_ENABLE_EXTENDED", "2": "ORT_ENABLE_ALL"}
"""`optimization.graph.level`, as the onnxruntime backend reads it; all when it is not given."""


class GraphModel:
    """Triton's `TritonPythonModel`. It reads those parameters of the onnxruntime backend that `OPTIONS` names."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.outputs = [o["name"] for o in config["output"]]
        self.session = opener(args)(Path(__file__).parent.parent / MODEL)
        # The graph's own, not the config's: sequence batching gives inputs that clients do not.
        self.inputs = [i.name for i in self.session.get_inputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Requests of one shape run together, others each alone; one response a request, in order."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs} for r in requests
        ]
        groups: dict[Any, list[int]] = {}
        for i, feed in enumerate(feeds):
            shape = tuple(a.shape[1:] for a in feed.values()) if self.batched else i
            groups.setdefault(shape, []).append(i)
        responses: list[Any] = [None] * len(requests)
        for members in groups.values():
            merged = {name: np.concatenate([feeds[i][name] for i in members]) for name in self.inputs}
            if len(members) == 1:
                merged = feeds[members[0]]
            try:
                outputs = self.session.run(self.outputs, merged)
            except Exception as e:  # ONNX Runtime's exceptions share no base class
                for i in members:
                    responses[i] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e)))
                continue
            first = 0
            for i in members:
                end = first + len(next(iter(feeds[i].values()))) if self.batched else None
                tensors = [
                    pb_utils.Tensor(name, np.ascontiguousarray(output[first:end] if self.batched else output))
                    for name, output in zip(self.outputs, outputs, strict=True)
                ]
                responses[i] = pb_utils.InferenceResponse(output_tensors=tensors)
                first = end or 0
        return responses


def opener(args: Mapping[str, str]) -> Callable[[Path], Any]:
    """What opens an ONNX Runtime session of a file as a model's config says, on the instance's device."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    config = json.loads(args["model_config"])
    given = {name: p["string_value"] for name, p in config.get("parameters", {}).items()}
    provider: Any = "CPUExecutionProvider"
    if args["model_instance_kind"] == "GPU":
        provider = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})

    def opened(path: Path) -> Any:
        session = ort.InferenceSession(str(path), options(ort, config, given), providers=[provider])
        name = provider if isinstance(provider, str) else provider[0]
        if session.get_providers()[0] != name:
            raise RuntimeError(f"ONNX Runtime runs on {session.get_providers()[0]}, not on {name}")
        return session

    return opened


OPTIONS = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern")


def options(ort: Any, config: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    """Session options from a model's config, by the onnxruntime backend's own names."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = int(given.get("intra_op_thread_count", 0))
    made.inter_op_num_threads = int(given.get("inter_op_thread_count", 0))
    if given.get("execution_mode") == "1":
        made.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    made.enable_cpu_mem_arena = given.get("enable_mem_arena", "1") != "0"
    made.enable_mem_pattern = given.get("enable_mem_pattern", "1") != "0"
    level = str(config.get("optimization", {}).get("graph", {}).get("level", "2"))
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS.get(level, LEVELS["2"]))
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in given.items():
        if name.startswith("session."):
            made.add_session_config_entry(name, value)
    return made
