"""The names that Triton's backends read in `parameters` and accelerators: they ignore others, or fail to load.

From the backends' documentation (`onnxruntime_backend/README.md`, `tensorrt_backend`, `python_backend/README.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelbuild.errors import problem, suggestion

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": (
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "level",
        "cudnn_conv_algo_search",
        "gpu_mem_limit",
        "arena_extend_strategy",
        "do_copy_in_default_stream",
    ),
    "python": (
        "EXECUTION_ENV_PATH",
        "FORCE_CPU_ONLY_INPUT_TENSORS",
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
    ),
    "tensorrt": ("execution_context_allocation_strategy", "weight_streaming_budget"),
}
"""Backend -> the parameters that it (or for `python` our model in it) reads; `session.*` is ONNX Runtime's own."""
ACCELERATORS: Mapping[str, tuple[str, ...]] = {
    "gpu_execution_accelerator": ("tensorrt", "cuda"),
    "cpu_execution_accelerator": ("openvino",),
}
TENSORRT = ("precision_mode", "max_workspace_size_bytes", "max_cached_engines", "minimum_segment_size")
PRECISIONS = ("FP32", "FP16", "INT8")


def ignored(backend: str, parameters: Mapping[str, Any]) -> list[str]:
    """The parameters that the backend will not read; a `ProblemError` for one that looks like a slip of the pen."""
    known = PARAMETERS[backend]
    found = []
    for name in parameters:
        if name in known or name.startswith("session."):
            continue
        meant = suggestion(name, known)
        if meant:
            raise problem(f"the {backend} backend has no parameter `{name}`", hint=meant, known=", ".join(known))
        found.append(name)
    return found


def require_accelerators(backend: str, config: Any) -> None:
    """A `ProblemError` for accelerators that the backend does not have, or keys that would fail at load."""
    if not config.optimization.HasField("execution_accelerators"):
        return
    if backend != "onnxruntime":
        raise problem(
            f"the {backend} backend has no execution accelerators", hint="they are for `backend: onnxruntime`"
        )
    for kind, names in ACCELERATORS.items():
        for accelerator in getattr(config.optimization.execution_accelerators, kind):
            if accelerator.name not in names:
                hint = suggestion(accelerator.name, names)
                title = f"`{kind}` has no `{accelerator.name}`"
                raise problem(title, known=", ".join(names), hint=hint)
            if accelerator.name == "tensorrt":
                _require_tensorrt(accelerator.parameters)


def _require_tensorrt(parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        if name not in TENSORRT and not name.startswith("trt_"):
            hint = suggestion(name, TENSORRT) or "the others are ONNX Runtime's own, `trt_...`"
            raise problem(f"the accelerator `tensorrt` has no parameter `{name}`", known=", ".join(TENSORRT), hint=hint)
        if name == "precision_mode" and value not in PRECISIONS:
            raise problem(f"`precision_mode` is not `{value}`", known=", ".join(PRECISIONS))
