"""Locks between threads and processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelbuild import lock

HOLD = """
import sys, time
from pathlib import Path
from modelbuild import lock
with lock.{how}(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "one"


def holder(path: Path, how: str = "exclusive") -> subprocess.Popen[str]:
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(how=how), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_folder_is_made_and_the_file_is_gone_afterwards(path: Path) -> None:
    with lock.exclusive(path):
        assert path.exists()

    assert not path.exists()


def test_the_file_is_gone_after_an_error_too(path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), lock.exclusive(path):
        raise ValueError("inside")

    assert not path.exists()


def test_a_free_lock_makes_nobody_wait(path: Path) -> None:
    waited: list[int] = []

    with lock.exclusive(path, lambda: waited.append(1)):
        pass
    with lock.exclusive(path, lambda: waited.append(1)):
        pass

    assert waited == []


def test_a_file_left_by_the_dead_makes_nobody_wait(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("left")
    waited: list[int] = []

    with lock.exclusive(path, lambda: waited.append(1)):
        pass

    assert waited == []


@pytest.mark.parametrize("threads", [2, 8])
def test_one_thread_at_a_time(path: Path, threads: int) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with lock.exclusive(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert (len(most), max(most)) == (20 * threads, 1)


def test_another_process_is_waited_for_and_that_is_told_once(path: Path) -> None:
    process = holder(path)
    told: list[float] = []

    def end() -> None:
        told.append(time.monotonic())
        process.terminate()

    with lock.exclusive(path, end):
        assert process.wait(5) == -signal.SIGTERM
    assert len(told) == 1


def test_the_lock_of_a_killed_process_is_free(path: Path) -> None:
    process = holder(path)
    process.kill()
    process.wait()

    with lock.exclusive(path, lambda: pytest.fail("nobody has it")):
        pass


def test_builders_share_what_gc_holds_alone(path: Path) -> None:
    process = holder(path, "shared")
    with lock.shared(path):
        pass
    told: list[int] = []

    def end() -> None:
        told.append(1)
        process.kill()

    with lock.sole(path, end):
        pass

    assert told == [1]
    process.wait()


def test_a_builder_waits_for_gc(path: Path) -> None:
    process = holder(path, "sole")
    entered: list[float] = []

    def build() -> None:
        with lock.shared(path):
            entered.append(time.monotonic())

    thread = threading.Thread(target=build)
    thread.start()
    time.sleep(0.1)
    assert entered == []
    process.kill()
    thread.join(5)

    assert len(entered) == 1
    process.wait()


def test_different_locks_do_not_meet(tmp_path: Path) -> None:
    with lock.exclusive(tmp_path / "a"), lock.exclusive(tmp_path / "b", lambda: pytest.fail("free")):
        pass
