"""How a server is to run: the defaults that were built into the context, overridden by the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "MODELSERVER_"
CGROUP = Path("/sys/fs/cgroup/cpu.max")


class Settings(NamedTuple):
    """Each is set by the variable `MODELSERVER_` + its name in upper case."""

    host: str = "0.0.0.0"
    port: int = 8000
    workers: int = 0
    """Batches that run at once; 0: as many as there are cores, one on a GPU."""
    threads: int = 0
    """Threads of ONNX Runtime for each batch; 0: all cores for one that is alone, else one each (see `sessions`)."""
    max_batch_size: int = 32
    """Rows of one batch, and of one request."""
    max_queue: int = 1024
    """Rows that wait for a batch; more are answered 503."""
    max_body_bytes: int = 16 * 2**20
    max_connections: int = 1024
    request_seconds: float = 60.0
    """How long a request may take to come in, and then to wait for its batch."""
    stop_seconds: float = 25.0
    """How long requests may go on after SIGTERM."""
    log_requests: bool = True


def read(built: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """The settings; a `ValueError` that names the variable for what is unknown or not of its kind."""
    usual = Settings(**built)
    known = {PREFIX + name.upper(): name for name in Settings._fields}
    given: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in known:
            raise ValueError(f"{variable} is not known; known are {', '.join(sorted(known))}")
        name = known[variable]
        given[name] = _value(variable, text, type(getattr(usual, name)))
    return usual._replace(**given)


def _value(variable: str, text: str, kind: type[Any]) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("0", "1", "false", "true"):
            raise ValueError(f"{variable} is not true or false: {text!r}")
        return text.lower() in ("1", "true")
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{variable} is not a number: {text!r}") from None
    if not 0 <= value < 2**53:
        raise ValueError(f"{variable} is out of range: {text!r}")
    return value


def cores(quota: Path = CGROUP) -> int:
    """The cores that this process may use: those it may run on, and no more than its container's quota."""
    allowed = len(os.sched_getaffinity(0))
    try:
        most, period = quota.read_text().split()
        return allowed if most == "max" else max(1, min(allowed, round(int(most) / int(period))))
    except (OSError, ValueError):
        return allowed
