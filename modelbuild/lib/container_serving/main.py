"""`python -m modelserver`: load the models, then serve them until told to stop."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import uvicorn

from . import logs, served
from .accounts import NAME
from .app import Endpoints
from .settings import cores, read

MODEL = "MODEL_FOLDER"
"""The variable that says where `server.json` is."""


def main() -> int:
    """The exit status: 1 where a setting or a model is not as it should be."""
    logs.configure()
    log = logging.getLogger(NAME)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        folder = Path(os.environ.get(MODEL, "/app/model"))
        told = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        settings = read(told["settings"], os.environ)
        found = cores()
        models = served.load(folder, told, settings, found)
    except Exception as e:
        log.error("not started: %s", e, exc_info=not isinstance(e, OSError | ValueError))
        return 1
    workers = settings.workers or (1 if told["device"] == "gpu" else found)
    endpoints = Endpoints(models, settings, told, workers)
    log.info("serving", extra={logs.FIELDS: {"models": list(models), "workers": workers, "cores": found}})
    config = uvicorn.Config(
        endpoints.app(),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(settings.stop_seconds),
    )
    server = uvicorn.Server(config)
    server.run()
    endpoints.close()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
