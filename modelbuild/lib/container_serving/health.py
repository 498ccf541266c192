"""`python -m modelserver.container_serving.health`: exit 0 where the server beside it is ready."""

from __future__ import annotations

import os
import sys
import urllib.request

SECONDS = 3.0


def ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=SECONDS) as reply:
            return int(reply.status) == 200
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if ready(os.environ.get("MODELSERVER_PORT", "8000")) else 1)
