"""The server of a container's context as a child process: the same program and packages, without a container."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import msgspec

from modelbuild.commands import tritonserver
from modelbuild.errors import problem


def python(requirements: Path) -> Path:
    """An interpreter that has exactly the packages: this one, or that of an environment made for them and kept."""
    if not _lacking(requirements):
        return Path(sys.executable)
    text = requirements.read_bytes() + sys.version.encode()
    place = _cache() / "modelbuild" / "environments" / hashlib.sha256(text).hexdigest()[:32]
    if not place.is_dir():
        _make(place, requirements)
    return place / "bin" / "python"


def _lacking(requirements: Path) -> list[str]:
    """The requirements that this interpreter does not have at their versions."""
    found = []
    for line in requirements.read_text().split():
        name, _, version = line.partition("==")
        try:
            if metadata.version(name) != version:
                found.append(line)
        except metadata.PackageNotFoundError:
            found.append(line)
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _make(place: Path, requirements: Path) -> None:
    """Install the requirements aside, as the Dockerfile does, and rename; a `ProblemError` with pip's own words."""
    sys.stderr.write(f"installing {', '.join(_lacking(requirements))} and what goes with them into {place}\n")
    aside = place.with_name(f"{place.name}.{os.getpid()}")
    pip = [aside / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements]
    try:
        for command in ([sys.executable, "-m", "venv", aside], pip):
            ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            if ran.returncode:
                said = " ".join((ran.stderr or ran.stdout).split())[-600:]
                raise problem("the server's packages cannot be installed", cause=said, requirements=requirements)
        with contextlib.suppress(OSError):  # another got there first: its environment is the same
            aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def start(context: Path, port: int, log: Path | None) -> subprocess.Popen[str]:
    """Start the server of a context on loopback; what it says goes to `log`, or to our stderr. Ends when we end."""
    if not tritonserver.free(port):
        raise problem(f"port {port} is in use", hint="choose another with --http-port")
    environment = {
        **os.environ,
        "MODEL_FOLDER": str(context / "model"),
        "MODELSERVER_HOST": tritonserver.LOOPBACK,
        "MODELSERVER_PORT": str(port),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(context / "server"),
        "PYTHONUNBUFFERED": "1",
    }
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(log.open("w")) if log else None
        return subprocess.Popen(
            [str(python(context / "requirements.txt")), "-m", "modelserver"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream or 2,
            stderr=subprocess.STDOUT if stream else None,
            text=True,
            start_new_session=True,
            preexec_fn=tritonserver.die_with_parent,
        )


def wait(server: subprocess.Popen[str], port: int, log: Path | None, seconds: float) -> None:
    """Return when it is ready; a `ProblemError` with its reasons when it ends or takes too long."""
    until = time.monotonic() + seconds
    while not tritonserver.ready(port):
        if server.poll() is not None:
            raise problem("the server does not serve this context", cause=_cause(log), exit=str(server.returncode))
        if time.monotonic() > until:
            tritonserver.stop(server)
            raise problem(f"the server is not ready after {seconds:g} s", cause=_cause(log))
        time.sleep(0.05)


def _cause(log: Path | None) -> str:
    """The errors of the log, else its last line."""
    if log is None:
        return "see what it said"
    lines = log.read_text(errors="replace").splitlines()
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            said = msgspec.json.decode(line, type=dict[str, object])
            if said.get("level") == "error":
                found.append(str(said.get("message")))
    return "; ".join(found[:3]) or (lines[-1][:400] if lines else "it said nothing")
