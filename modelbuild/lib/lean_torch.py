"""Imports torch and transformers without the parts that only training and serving need.

Measured (torch 2.13, transformers 5.23): importing a BERT class costs 2.3 CPU-s and 150 MB over torch alone, of which
about 0.5 CPU-s and 35 MB are `torch.distributed.tensor` and packages that happen to be installed. transformers leaves
both out where they are not available, so that is what it is told, before its first import in this process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

OPTIONAL = ("scipy", "sklearn", "pandas", "accelerate", "sentence_transformers", "torchvision", "torchaudio", "PIL")
"""transformers asks `importlib.util.find_spec` for these, which answers None for a module that is None."""


def import_torch() -> Any:
    """torch, with one thread: exporting is Python work, and waiting threads spin."""
    import torch

    torch.set_num_threads(1)
    return torch


def import_transformers() -> Any:
    """transformers (its lazy top module), told that it runs in one process and without optional packages."""
    if "transformers" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        import torch.distributed

        torch.distributed.is_available = lambda: False
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def without_optional() -> Iterator[None]:
    """Hides the optional packages, those already imported excepted, while transformers' modules are imported."""
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
