"""The ready-to-paste report of a failure that is ours."""

from __future__ import annotations

import platform
import sys
import traceback

from modelbuild import __version__

ISSUES = "please report this as a bug of modelbuild, with everything below"


def report(error: Exception, arguments: list[str]) -> str:
    """What to tell a user when modelbuild itself is wrong."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    machine = f"modelbuild {__version__}, Python {sys.version.split()[0]}, {platform.platform()}"
    told = f"internal error: {ISSUES}\n\n{machine}\nmodelbuild {' '.join(arguments)}\n{trace}"
    return told.encode("utf-8", "backslashreplace").decode()
