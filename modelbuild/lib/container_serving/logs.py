"""Logs as one JSON object a line, on stdout."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

FIELDS = "fields"
"""The key of `extra` whose mapping is put into the line."""


class Lines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, then the fields of the record, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure() -> None:
    """Send all logs through `Lines`; uvicorn's own included."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
