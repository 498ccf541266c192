"""The only module that knows doit: targets as its tasks, its runner for order, keep-going and parallel builds.

doit asks a task whether it is up to date when the tasks it depends on are done, which is what lets a target be keyed
by the content of its inputs. It remembers nothing: the store does (docs/decisions/0002-doits-seat.md).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from doit.control import TaskControl
from doit.dependency import Dependency
from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.runner import MThreadRunner, Runner
from doit.task import Stream, Task

from modelbuild import events, project
from modelbuild.decide import Decider
from modelbuild.errors import BuildError, Problem, ProblemError, from_os_error
from modelbuild.executors import local
from modelbuild.rebuild import Rebuilder
from modelbuild.report.color import wanted
from modelbuild.report.errors import render
from modelbuild.report.plain import Lines

DRAIN_S = 10.0
"""How long an interrupted run waits for its builds to put their folders away."""


class Forgetful:
    """A doit database that keeps nothing beyond the run."""

    def __init__(self, name: str, codec: object, *, module_name: str | None = None) -> None:
        self.name = name
        self._values: dict[tuple[str, str], Any] = {}

    def get(self, task_id: str, dependency: str) -> Any:
        return self._values.get((task_id, dependency))

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        self._values[task_id, dependency] = value

    def in_(self, task_id: str) -> bool:
        return any(task == task_id for task, _ in self._values)

    def remove(self, task_id: str) -> None:
        self._values = {k: v for k, v in self._values.items() if k[0] != task_id}

    def remove_all(self) -> None:
        self._values.clear()

    def dump(self) -> None:
        """Nothing outlives the run."""


class EventReporter:
    """Turns what doit reports into events. Builds tell their own story; what doit alone knows is who was skipped."""

    desc = "modelbuild events"

    def __init__(self, sink: events.Sink, names: dict[str, str]) -> None:
        self.sink, self.names = sink, names

    def add_failure(self, task: Task, fail: Any) -> None:
        if type(fail).__name__ == "UnmetDependency":
            because = tuple(self.names.get(n, n) for n in fail.message.split())
            self.sink(events.Skipped(self.names[task.name], because))
        elif not isinstance(fail, TaskFailed):
            self.sink(events.Failed(self.names[task.name], (Problem(f"doit: {fail.get_msg()}"),)))

    def runtime_error(self, message: str) -> None:
        raise ProblemError(Problem(message))

    def cleanup_error(self, exception: Any) -> None:
        raise ProblemError(Problem(str(exception)))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class TargetTasks:
    """The doit tasks of a graph. `failed` counts the targets that could not be brought up to date."""

    def __init__(self, rebuilder: Rebuilder) -> None:
        self.rebuilder, self.graph, self.sink = rebuilder, rebuilder.graph, rebuilder.sink
        self.exit_code = 0
        self.crash: Exception | None = None

    def is_fresh(self, name: str) -> bool:
        """doit's `uptodate`, asked when the inputs are done."""
        decision = self.rebuilder.decider.decide(name)
        if decision.action == "fresh" and decision.key is not None:
            self.sink(events.Fresh(name, decision.key))
        return decision.action == "fresh"

    def bring(self, name: str) -> TaskFailed | None:
        """doit's action."""
        if local.stopping():
            return TaskFailed("interrupted")
        try:
            self.rebuilder.bring(name)
        except ProblemError as e:
            return self._fail(name, e)
        except OSError as e:
            return self._fail(name, BuildError(from_os_error(e)))
        except KeyboardInterrupt:
            return TaskFailed("interrupted")
        except Exception as e:
            self.crash = e
            return TaskFailed("internal error")
        return None

    def _fail(self, name: str, error: ProblemError) -> TaskFailed:
        """Tell of a failure; a build that failed outweighs one that could not be tried."""
        self.exit_code = error.exit_code if self.exit_code != BuildError.exit_code else self.exit_code
        self.sink(events.Failed(name, error.problems))
        return TaskFailed(error.problems[0].title)

    def describe(self, name: str) -> dict[str, Any]:
        """A target as doit's task dictionary, without its name."""
        node = self.graph.nodes[name]
        link = self.rebuilder.store.names.path(node.recipe, node.short)
        return {
            "actions": [(self.bring, [name])],
            "task_dep": [task_name(n) for n in node.needs()],
            "targets": [str(link)],
            "uptodate": [(self.is_fresh, [name])],
            "io": {"capture": False},
            "doc": f"{node.kind} {node.where}",
            "meta": {"target": name, "kind": node.kind},
        }

    def tasks(self, names: Sequence[str]) -> list[Task]:
        """The tasks of `names`, which depend on one another and on nothing else."""
        among = {task_name(n) for n in names}
        found = [(task_name(n), self.describe(n)) for n in names]
        return [Task(n, **{**d, "task_dep": [t for t in d["task_dep"] if t in among]}) for n, d in found]


def task_name(name: str) -> str:
    """A target's name as doit takes it: `=` means something else on its command line."""
    return name.replace("=", "~")


def run(rebuilder: Rebuilder, stale: Sequence[str], *, jobs: int, keep_going: bool) -> int:
    """Bring `stale` up to date with `jobs` builds at a time; the exit code.

    They are in build order, and all else that they need is up to date: doit, whose own work takes 0.2 ms a task, is
    told of no more than them.
    """
    targets = TargetTasks(rebuilder)
    control = TaskControl(targets.tasks(stale))
    control.process([task_name(n) for n in stale])  # all of them, in order: doit's own is that of its sets
    memory = Dependency(Forgetful, "")
    reporter = EventReporter(rebuilder.sink, {task_name(n): n for n in stale})
    common = (memory, reporter, keep_going, False, Stream(0))
    runner = Runner(*common) if jobs == 1 else MThreadRunner(*common, num_process=jobs)
    with _interruptible():
        try:
            failed = runner.run_all(control.task_dispatcher())
            if local.stopping():
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            local.stop()
            deadline = time.monotonic() + DRAIN_S
            while rebuilder.places and time.monotonic() < deadline:
                time.sleep(0.02)
            raise
    if targets.crash is not None:
        raise targets.crash
    return targets.exit_code or int(failed != 0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: builds stopped, their folders put away."""

    def interrupt(number: int, frame: object) -> None:
        local.stop_soon()
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, interrupt) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dodo(folder: Path) -> Iterator[dict[str, Any]]:
    """The task dictionaries of every target of a project, for its `dodo.py`."""
    try:
        opened = project.load(folder.resolve(), {})
        opened.store.prepare()
    except ProblemError as e:
        raise InvalidDodoFile(render(e.problems, wanted(sys.stderr))) from None
    targets = TargetTasks(Rebuilder(Decider(opened.graph, opened.store), Lines(sys.stderr, wanted(sys.stderr))))
    for name in opened.graph.nodes:
        recipe, _, short = task_name(name).partition(":")
        yield {"basename": recipe, "name": short, **targets.describe(name)}
