"""A tritonserver as a child process: found, started on loopback, waited for, and told to stop with us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelbuild.errors import problem

ENVIRONMENT = "MODELBUILD_TRITONSERVER"
USUAL = ("tritonserver", "/opt/tritonserver/bin/tritonserver")
LOOPBACK = "127.0.0.1"
PR_SET_PDEATHSIG = 1
"""`prctl(2)`: a signal to get when the parent dies."""
ERROR = re.compile(r'^E\d{4} [\d:.]+ \d+ \S+\] "?(?!CudaDriverHelper)(.*?)"?$|^error: (.*)$')
"""A line of the server's log that tells an error: glog's level E, or the last word before it ends."""


class Ports(msgspec.Struct, frozen=True):
    """The TCP ports of a server, all on loopback."""

    http: int
    grpc: int
    metrics: int


def find(given: Path | None) -> str:
    """The server's program: as given, by the environment, or where it usually is; else a `ProblemError`."""
    named = str(given) if given else os.environ.get(ENVIRONMENT)
    for candidate in (named,) if named else USUAL:
        found = shutil.which(candidate)
        if found:
            return found
    if named:
        raise problem(f"`{named}` is no program that can be run", named_by="--tritonserver" if given else ENVIRONMENT)
    raise problem(
        "there is no tritonserver on this machine",
        looked_for=f"--tritonserver, ${ENVIRONMENT}, {', '.join(USUAL)}",
        hint="see docs/howto/triton.md for a container, or for one from pip",
    )


def start(program: str, repository: Path, ports: Ports, log: Path | None, more: Sequence[str]) -> subprocess.Popen[str]:
    """Start a server of a repository; what it says goes to `log`, or to our stderr. Ends when this process ends."""
    taken = [p for p in msgspec.structs.astuple(ports) if not free(p)]
    if taken:
        raise problem(f"port {taken[0]} is in use", hint="choose others with --http-port, --grpc-port, --metrics-port")
    arguments = [program, f"--model-repository={repository}", *more]
    for name in ("http", "grpc", "metrics"):
        arguments += [f"--{name}-address={LOOPBACK}", f"--{name}-port={getattr(ports, name)}"]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(log.open("w")) if log else None
        return subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream or 2,
            stderr=subprocess.STDOUT if stream else None,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def view(repository: Path, folder: Path) -> Path:
    """A repository of links to the files of another, in `folder`, which must be absolute.

    The Python backend writes byte code beside the programs whatever its environment says, and an artifact in the
    store must stay as it is.
    """
    for path in sorted(repository.rglob("*")):
        place = folder / path.relative_to(repository)
        if path.is_dir():
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return folder


def die_with_parent() -> None:
    """Called in a child: end it when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free(port: int) -> bool:
    """Whether a port of loopback can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def wait(server: subprocess.Popen[str], ports: Ports, log: Path | None, seconds: float) -> None:
    """Return when every model is ready; a `ProblemError` with the server's reasons when it ends or takes too long."""
    until = time.monotonic() + seconds
    while not ready(ports.http):
        if server.poll() is not None:
            raise problem(
                "tritonserver does not serve this repository",
                cause=causes(log),
                log=str(log) if log else "above",
                exit=str(server.returncode),
            )
        if time.monotonic() > until:
            stop(server)
            raise problem(f"tritonserver is not ready after {seconds:g} s", cause=causes(log), log=str(log or "above"))
        time.sleep(0.1)


def ready(port: int) -> bool:
    """Whether a server of the protocol says that it is ready."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/v2/health/ready", timeout=2) as reply:
            return int(reply.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def causes(log: Path | None) -> str:
    """The lines of a server's log that say what is wrong, at most three."""
    if log is None or not log.is_file():
        return "see what it said"
    lines = log.read_text(errors="replace").splitlines()
    found = [(m[1] or m[2])[:300] for line in lines if (m := ERROR.match(line))]
    return "; ".join(list(dict.fromkeys(found))[:3]) or "it gave none"


def stop(server: subprocess.Popen[str]) -> None:
    """End a server as its users would: let it finish what it does for at most 10 s, then kill it."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
