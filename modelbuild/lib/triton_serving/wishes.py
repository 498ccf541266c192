"""What a request to generate may ask for, read from its parameters and held to what the model allows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

STREAM = "stream"
NAME, CANCEL = "_name", "_cancel"
"""Parameters between the two models: a name for a request, and the name of one that is no longer wanted."""
WRONG = "asked wrong: "
"""What an error between the two models begins with where the client is to blame: codes get lost between models."""
INTERNAL = ("triton_", "_")
"""Beginnings of parameters that are the server's own, and ours between the two models."""
MOST_STOPS = 16
LARGEST_SEED = 2**63 - 1


class Wishes(NamedTuple):
    """How to generate. Greedy unless one of `temperature`, `top_k`, `top_p` and `seed` is there to sample by.

    `max_new_tokens` is None where the request does not say it. `temperature` is 0 for greedy.
    """

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None


def read(parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> Wishes:
    """The wishes of a request's parameters; a `ValueError` for one that is unknown or not of its kind.

    Strings are taken for numbers too (not every client can send a fraction), and a JSON list of strings for `stop`.
    `settings` may hold `defaults` (parameters that requests do not say) and `max_new_tokens` (the most).
    """
    given = {**settings.get("defaults", {}), **{n: v for n, v in parameters.items() if not n.startswith(INTERNAL)}}
    given.pop(STREAM, None)
    unknown = sorted(set(given) - set(READERS))
    if unknown:
        raise ValueError(f"unknown parameter `{unknown[0]}`; known are {', '.join(READERS)}")
    found = {name: READERS[name](name, value) for name, value in given.items()}
    most = settings.get("max_new_tokens")
    wanted = found.get("max_new_tokens")
    if wanted is not None and most is not None and wanted > most:
        raise ValueError(f"`max_new_tokens` is {wanted}, and this model gives at most {most}")
    if "temperature" not in found and {"top_k", "top_p", "seed"} & found.keys():
        found["temperature"] = 1.0
    return Wishes(**found)


def flag(parameters: Mapping[str, Any], name: str, usual: bool) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, usual)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is not true or false: {value!r}")
    return value


def _whole(least: int, most: int | None = None) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        found = _number(name, value)
        if found != int(found) or found < least or (most is not None and found > most):
            raise ValueError(f"`{name}` is not a whole number of at least {least}: {value!r}")
        return int(value) if isinstance(value, int | str) and str(value).lstrip("-").isdecimal() else int(found)

    return read


def _fraction(allowed: Callable[[float], bool], said: str) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        found = _number(name, value)
        if not allowed(found):
            raise ValueError(f"`{name}` is not {said}: {value!r}")
        return found

    return read


def _number(name: str, value: Any) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"`{name}` is not a number: {value!r}")
    return found


def _stops(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise ValueError(f"`{name}` is not a text, or a JSON list of texts: {value!r}")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"`{name}` has {len(stops)} texts, at most {MOST_STOPS} are taken")
    return tuple(stops)


READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _whole(1),
    "stop": _stops,
    "temperature": _fraction(lambda t: t >= 0, "0 (greedy) or more"),
    "top_k": _whole(0),
    "top_p": _fraction(lambda p: 0 < p <= 1, "above 0 and at most 1"),
    "repetition_penalty": _fraction(lambda p: p > 0, "above 0"),
    "seed": _whole(0, LARGEST_SEED),
}
"""Every parameter that a request may have, and how it is read."""
