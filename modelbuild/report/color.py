"""Whether a stream takes colour, and the few styles used."""

from __future__ import annotations

import os
from typing import TextIO

STYLES = {"green": "32", "yellow": "33", "red": "31", "blue": "34", "dim": "2", "bold": "1"}


def wanted(stream: TextIO) -> bool:
    """Colour for terminals, unless `NO_COLOR` (no-color.org) is set; `FORCE_COLOR` forces it."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def styled(text: str, style: str, color: bool) -> str:
    """`text` in a style, or as it is."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if color else text
