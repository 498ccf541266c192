"""TensorRT's words for a failed build, as a problem that says what to change."""

from __future__ import annotations

import re

from modelbuild.errors import Problem
from modelbuild.lib.plan_backend import TITLES, Backend

_NODE = re.compile(r"operation '(?P<node>[^']+)'")
_KNOWN = (
    (
        "FP32 GEMM is not supported",
        "TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5",
        "put `kind: fp16, runtime: tensorrt` between, or take 7.5 out of `compute_capabilities`",
    ),
    (
        "HW-specific datatypes",
        "the model has data types that not all of these GPUs have",
        "take the older ones out of `compute_capabilities`, or start from an int8 or fp16 model",
    ),
    (
        "no optimization profile has been defined",
        "the model has dynamic dimensions, and no profile says how large they get",
        "add `profiles`",
    ),
    ("CUDA initialization failure", "the GPU cannot be used", "check the driver with `nvidia-smi`"),
    ("cudaError", "the GPU cannot be used", "check the driver with `nvidia-smi`; other work may fill its memory"),
    ("out of memory", "there is too little memory for this build", "lower `workspace`, or the profiles' most"),
    ("OutOfMemory", "there is too little memory for this build", "lower `workspace`, or the profiles' most"),
    ("requires lean runtime", "the lean runtime is not installed", "pip install tensorrt-lean"),
    (
        "Could not find any implementation for node",
        "no kernel of this GPU fits a node",
        "raise `workspace` or `optimization_level`, or update TensorRT",
    ),
)


def problem_of(cause: str, backend: Backend) -> Problem:
    """The problem of a build that failed with `cause`, TensorRT's messages."""
    title, hint = f"{TITLES[backend.name]} could not build the plan", None
    for mark, known, help_ in _KNOWN:
        if mark in cause:
            title, hint = known, help_
            break
    node = _NODE.search(cause)
    facts = [("node", node["node"])] if node else []
    return Problem(title, facts=(*facts, ("cause", cause), ("version", backend.version)), hint=hint)
