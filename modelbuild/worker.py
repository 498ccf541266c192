"""Runs one build in a child process: reads the job, calls the kind, tells the driver what happens line by line.

By hand, `python -P -m modelbuild.worker job.json` repeats a stage alone, with its talk on stderr and its output
beside the job file.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from modelbuild import artifact, kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError, from_os_error
from modelbuild.job import AnyMessage, Done, Failed, Job, Linked, Log, Metric, Progress, Varied, Vary, line, load

FICLONE = 0x40049409
"""`ioctl` request that makes a file share another's extents (Linux `ioctl_ficlone(2)`: btrfs, xfs, bcachefs)."""
PROGRESS_EVERY_S = 0.1


class Talk:
    """Sends messages to the driver, or prints them when there is none."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self.stream = stream
        self.lock = threading.Lock()

    def __call__(self, message: AnyMessage) -> None:
        with self.lock:
            if self.stream is not None:
                self.stream.write(line(message))
                self.stream.flush()
                return
        match message:
            case Log(text):
                sys.stderr.write(f"{text}\n")
            case Progress(done, total, what):
                sys.stderr.write(f"{what}: {done:g}/{total:g}\n")
            case Failed(problems):
                for p in problems:
                    facts = "".join(f"\n  {label}: {value}" for label, value in p.facts)
                    sys.stderr.write(f"error: {p.title}{facts}\n" + (f"  hint: {p.hint}\n" if p.hint else ""))
            case _:
                pass


class Driver:
    """Hears the driver on standard input; when it is gone, its end of the pipe closes, and this process group ends."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        """Its lines that were not taken yet."""
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        heard = b""
        with contextlib.suppress(OSError):
            while more := os.read(0, 1 << 16):
                *lines, heard = (heard + more).split(b"\n")
                for each in lines:
                    self.said.put(each)
        os.killpg(0, signal.SIGKILL)


class BuildContext:
    """The `Context` of a real build (see `modelbuild.kind.Context`)."""

    def __init__(self, job: Job, talk: Talk, driver: Driver | None) -> None:
        self.out, self.scratch = job.out, job.scratch
        self.inputs: Mapping[str, tuple[Artifact, ...]] = {
            field: tuple(artifact.read(p) for p in paths) for field, paths in job.inputs.items()
        }
        self.sources: Mapping[str, Path] = {field: use.path for field, use in job.sources.items()}
        self._files = {field: use.files for field, use in job.sources.items()}
        self._history = job.history
        self._names, self._options = job.names, job.options
        self._store_roots = tuple(p for paths in job.inputs.values() for p in paths)
        self._talk, self._driver = talk, driver
        self._last_progress = 0.0

    def input(self, field: str = "from") -> Artifact:
        (one,) = self.inputs[field]
        return one

    def source_files(self, field: str) -> tuple[Path, ...]:
        return self._files[field]

    def history(self, field: str) -> tuple[dict[str, Any], ...]:
        return self._history[field]

    def names(self, field: str) -> tuple[str, ...]:
        return self._names[field]

    def options(self, field: str) -> tuple[dict[str, Any], ...]:
        return self._options[field]

    def vary(self, label: str, changes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, tuple[Artifact, ...]]:
        if self._driver is None:
            hint = "`modelbuild build` does"
            raise ProblemError(Problem("a stage that is repeated alone builds no other targets", hint=hint))
        self._talk(Vary(label, {target: dict(options) for target, options in changes.items()}))
        answer = msgspec.json.decode(self._driver.said.get(), type=Varied)
        if answer.problems:
            raise ProblemError(*answer.problems)
        found = {field: tuple(artifact.read(Path(p)) for p in paths) for field, paths in answer.inputs.items()}
        self._store_roots += tuple(a.path for artifacts in found.values() for a in artifacts)
        return found

    def link(self, src: Path, dst: Path) -> None:
        if not src.is_dir():
            self._link_file(src, dst)
            return
        files = sorted(p for p in src.rglob("*") if p.is_file())
        for done, file in enumerate(files):
            self._link_file(file, dst / file.relative_to(src))
            self.progress(done + 1, len(files), f"link {src.name}")

    def _link_file(self, src: Path, dst: Path) -> None:
        dst.parent.mkdir(parents=True, exist_ok=True)
        immutable = any(src.is_relative_to(root) for root in self._store_roots)
        if _reflink(src, dst):
            return
        if immutable and _hard_link(src, dst):
            self._talk(Linked(str(dst.relative_to(self.out))))
            return
        self._copy(src, dst)

    def _copy(self, src: Path, dst: Path) -> None:
        total, done = src.stat().st_size, 0
        with src.open("rb") as reader, dst.open("wb") as writer:
            while sent := os.sendfile(writer.fileno(), reader.fileno(), None, 64 << 20):
                done += sent
                self.progress(done, total, f"copy {src.name}")

    def describe(self, descriptor: Descriptor) -> None:
        artifact.write(self.out, descriptor)

    def progress(self, done: float, total: float, what: str) -> None:
        now = time.monotonic()
        if done >= total or now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self._talk(Progress(done, total, what))

    def log(self, text: str) -> None:
        self._talk(Log(text))

    def metric(self, name: str, value: float, unit: str = "") -> None:
        self._talk(Metric(name, float(value), unit))


def _reflink(src: Path, dst: Path) -> bool:
    import fcntl

    with src.open("rb") as reader, dst.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        except OSError:
            dst.unlink()
            return False
    return True


def _hard_link(src: Path, dst: Path) -> bool:
    try:
        os.link(src, dst)
    except OSError as e:
        if e.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    return True


def run(job: Job, talk: Talk, driver: Driver | None = None) -> bool:
    """Do the job; whether it succeeded. Every failure is told as problems, first of all: the log's disk may be full."""
    try:
        module = kind.load(job.kind)
        spec = msgspec.convert(job.spec, module.Spec)
        module.build(spec, BuildContext(job, talk, driver))
        if not (job.out / artifact.DESCRIPTOR).is_file():
            hint = "its build must call ctx.describe"
            raise ProblemError(Problem(f"kind `{job.kind}` wrote no descriptor", hint=hint))
        artifact.read(job.out)
    except Exception as e:
        talk(Failed(_problems(job.kind, e)))
        if not isinstance(e, ProblemError):
            with contextlib.suppress(OSError):
                traceback.print_exception(e)
        return False
    return True


def _problems(name: str, error: Exception) -> tuple[Problem, ...]:
    """What to tell of an exception that ended the build of a target of kind `name`."""
    match error:
        case ProblemError():
            return error.problems
        case ModuleNotFoundError():
            return (_missing_module(name, error),)
        case MemoryError():
            return (Problem("out of memory", hint="see the log for what was being done"),)
        case OSError():
            return (from_os_error(error),)
        case _:
            cause = (str(error).strip() or repr(error)).splitlines()[0]
            shown = cause.encode("utf-8", "backslashreplace").decode()
            return (Problem(f"{type(error).__name__}: {shown}", hint="the log has the whole traceback"),)


def _missing_module(name: str, error: ModuleNotFoundError) -> Problem:
    package = (error.name or "?").split(".")[0]
    extra = kind.load(name).TOOLS.get(package)
    return Problem(
        f"the package `{package}` is not installed",
        facts=(("needed by", f"kind `{name}`"),),
        hint=f"pip install 'modelbuild[{extra}]'" if extra else f"pip install {package}",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m modelbuild.worker", description=__doc__)
    parser.add_argument("job", type=Path, help="the job file")
    parser.add_argument("--events", type=int, help="a file descriptor for messages to the driver")
    options = parser.parse_args(arguments)
    job = load(options.job.read_bytes())
    if options.events is None:
        place = options.job.absolute().parent
        job = msgspec.structs.replace(job, out=place / "out", scratch=place / "scratch")
        shutil.rmtree(job.out, ignore_errors=True)
        talk, driver = Talk(None), None
    else:
        driver = Driver()
        os.set_inheritable(options.events, False)
        talk = Talk(os.fdopen(options.events, "wb"))
    for folder in (job.out, job.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(job.scratch)
    if not run(job, talk, driver):
        return 1
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime
    talk(Done(cpu, max(used.ru_maxrss, children.ru_maxrss) * 1024))
    return 0


if __name__ == "__main__":
    sys.exit(main())
