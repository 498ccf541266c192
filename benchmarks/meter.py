"""Runs a command and tells what it cost: CPU time, peak memory and bytes read of its whole process tree, wall time.

- CPU time is `os.wait4`'s user + system time. The kernel counts children there once their parent has waited for them,
  which make, ninja, modelbuild and the others measured here do.
- Peak memory is that of the largest process of the tree. `wait4` tells it exactly (`ru_maxrss`), but never less than
  this script's own size, which a child has until it calls exec; below that, it is the largest VmHWM seen in
  /proc/<pid>/status of the tree, looked at every few milliseconds.
- Bytes read are `rchar` in /proc/<pid>/io: all that read, pread, sendfile and copy_file_range gave, whether from the
  disk or the page cache; mapped files are not in it. It is looked at between the command's end and its reaping, when
  its children's are in it too.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.004
"""Seconds between two looks at the processes' memory."""
QUIET: Mapping[str, str] = {
    "CI": "1",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""No network, no telemetry. Olive sends a heartbeat before it looks at its own switch, but not where `CI` is set."""


INHERITED = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")}
"""Without what makes Python compile its sources anew in every process, which no user has set."""


class BenchmarkError(Exception):
    """A command, or what it made, was not what it should be."""


@dataclass(frozen=True)
class Cost:
    """What a command cost: seconds, MB (10^6 bytes), bytes; `talk` is all it said on stdout and stderr."""

    cpu_s: float
    peak_mb: float
    wall_s: float
    read_bytes: int
    talk: str


def measure(
    command: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    look: Callable[[int], None] | None = None,
) -> Cost:
    """Run `command` in `folder` and wait for it; `BenchmarkError` with what it said where it does not exit 0.

    `look` is called with the id of each process of the tree, time and again.
    """
    with tempfile.TemporaryFile() as talk:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**INHERITED, **QUIET, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=talk,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak = 0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            for pid in tree(process.pid):
                peak = max(peak, status_bytes(pid, "VmHWM"))
                if look:
                    look(pid)
            time.sleep(LOOK_S)
        wall = time.monotonic() - started
        read = read_so_far(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        talk.seek(0)
        said = talk.read().decode(errors="replace")
    if process.returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise BenchmarkError(f"`{shown}` exited {process.returncode}:\n{said[-4000:]}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = max(peak, used.ru_maxrss * 1024) if used.ru_maxrss > own else peak
    return Cost(used.ru_utime + used.ru_stime, peak / 1e6, wall, read, said)


def tree(pid: int) -> list[int]:
    """The process and all below it that are alive."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def status_bytes(pid: int, field: str) -> int:
    """A size from /proc/<pid>/status, in bytes; 0 when the process has none any more."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def read_so_far(pid: int) -> int:
    """Bytes that the process and its reaped children have read; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])
    except OSError:
        return 0


def median(costs: Iterable[Cost], what: str) -> float:
    """The median of one of the costs' figures."""
    return statistics.median(getattr(cost, what) for cost in costs)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def say(text: str) -> None:
    """A line of talk, to stderr: stdout is the result."""
    sys.stderr.write(f"{text}\n")


def versions(python: Path, packages: Sequence[str]) -> str:
    """`Python version, name version, ...` of an interpreter and packages that it has."""
    code = """
import platform, sys
from importlib.metadata import version
print("Python", platform.python_version(), *(f", {p} {version(p)}" for p in sys.argv[1:]), sep=" ")
"""
    return subprocess.check_output([python, "-c", code, *packages], text=True).strip().replace(" ,", ",")


def machine() -> str:
    """The kind of machine: cores, memory and system, without names."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {os.uname().sysname} {os.uname().machine}"
