"""Imports torch and transformers without the parts that only training and serving need.

Measured (torch 2.13, transformers 5.23): importing a BERT class costs 2.3 CPU-s and 150 MB over torch alone, of which
about 0.5 CPU-s and 35 MB are `torch.distributed.tensor` and packages that happen to be installed. transformers leaves
both out where they are not available, so that is what it is told, before its first import in this process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

OPTIONAL = ("scipy", "sklearn", "pandas", "accelerate", "sentence_transformers", "torchvision", "torchaudio", "PIL")
"""transformers asks `importlib.util.find_spec` for these, which answers None for a module that is None."""


def import_torch() -> Any:
    """torch, with one thread: exporting is Python work, and waiting threads spin."""
    with _no_collection():
        import torch
    torch.set_num_threads(1)
    return torch


def import_class(name: str) -> Any:
    """The class `transformers.<name>`."""
    with _lean():
        return getattr(importlib.import_module("transformers"), name)


def import_tables() -> Any:
    """The module with transformers' tables from model type to class name; every model's class imports it anyway."""
    with _lean():
        return importlib.import_module("transformers.models.auto.modeling_auto")


def import_caches() -> Any:
    """The module with transformers' key-value caches."""
    with _lean():
        return importlib.import_module("transformers.cache_utils")


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Imports of transformers in which it finds one process and no optional package.

    It is told so at its first import in this process and remembers what it found; a process that has imported it
    otherwise is left as it is.
    """
    first = "transformers" not in sys.modules
    hidden = [package for package in OPTIONAL if first and package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        with _no_collection(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if first:
                import torch.distributed

                torch.distributed.is_available = lambda: False
            import transformers

            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            yield
    finally:
        for package in hidden:
            if sys.modules.get(package) is None:
                sys.modules.pop(package, None)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Imports make half a million objects that stay: looking for garbage among them costs 0.6 CPU-s."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
