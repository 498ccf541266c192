"""Amounts as people read them: bytes, seconds, how long ago."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes in decimal units: `23.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(value: float) -> str:
    """A duration: `0.42 s`, `3.1 s`, `2 min 5 s`."""
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ago(then: float) -> str:
    """How long ago a time (seconds since the epoch) was."""
    passed = max(0.0, time.time() - then)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(passed // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns, the last one ragged."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]


def parse_size(text: str) -> int:
    """The bytes of `20GB`, `512 MiB` or `1000`; a `ValueError` for what is no size."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(?:([kKMGT]?)(i?)B?)", text.strip())
    if not found or (found[3] and not found[2]):
        raise ValueError(text)
    power = " kMGT".index(found[2].replace("K", "k") or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
