"""Functions of the user's own code: a recipe names them, and a build alone runs them."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelbuild.errors import problem, suggestion

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""`package.module:function`."""


def load(code: Path, name: str, what: str) -> Callable[..., Any]:
    """The function `package.module:function` in `code` (a Python file, or the folder its package lies in).

    `what` it is for the recipe (`factory`) is told in a `ProblemError`, when there is no such module or function or
    importing it fails.
    """
    module_name, function_name = name.split(":")
    module = _import(code, module_name, f"the {what} `{name}`")
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None or not callable(function):
        hint = suggestion(function_name, [n for n in vars(module) if not n.startswith("_")])
        raise problem(f"`{module_name}` has no function `{function_name}`", hint=hint)
    return function


def _import(code: Path, name: str, whose: str) -> Any:
    """The module `name` from `code` and from nowhere else."""
    root = code if code.is_dir() else code.parent
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as e:  # anybody's code
        raise failed(f"`{name}` of {whose} cannot be imported", code, e) from e
    finally:
        sys.dont_write_bytecode = writes
    file = Path(module.__file__ or "").resolve()
    if not (file.is_relative_to(root.resolve()) if code.is_dir() else file == code.resolve()):
        raise problem(
            f"`{name}` is not in `{code.name}`",
            found=module.__file__ or "a module without a file",
            hint="`code` is the function's Python file, or the folder its package lies in",
        )
    return module


def failed(title: str, code: Path, error: Exception) -> Exception:
    """A `Problem` with the last line of the user's code that the error passed through."""
    root = str(code if code.is_dir() else code.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    place = f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else code.name
    return problem(title, at=place, cause=f"{type(error).__name__}: {error}".splitlines()[0])
