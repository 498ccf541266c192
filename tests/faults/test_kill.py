"""Builds killed at random moments and builders side by side: a plain rebuild always equals a clean build.

Short here; `MODELBUILD_FAULT_ROUNDS=500 pytest -s tests/faults/test_kill.py` is the long form, which prints each round.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox import Ran, Sandbox

ROUNDS = int(os.environ.get("MODELBUILD_FAULT_ROUNDS", "6"))
RECIPE = """
    a:    {kind: text, path: a.txt}
    b:    {kind: upper, from: a}
    c:    {kind: slow, from: b, seconds: 0.15, bytes: 300000}
    d:    {kind: join, from: [a, b], matrix: {sep: [x, y]}}
    e:    {kind: slow, from: a, seconds: 0.1, bytes: 9000000}
    last: {kind: join, from: [c, d, e]}
"""
Way = Callable[[subprocess.Popen[str], Sandbox], None]
LONGEST_S = 1.0
"""About what a cold build of the recipe takes."""


def content(text: str) -> dict[str, str]:
    """What each target must hold."""
    big = text.upper()
    d = {"d[sep=x]": f"{text}x{big}", "d[sep=y]": f"{text}y{big}"}
    return {"a": text, "b": big, "c": big, **d, "e": text, "last": big + "".join(d.values()) + text}


def held(sandbox: Sandbox) -> dict[str, str]:
    return {target: sandbox.value(target) for target in content("")}


def digests(sandbox: Sandbox) -> dict[str, str]:
    return {row["target"]: row["digest"] for row in sandbox.run("status", "--json").json}


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_a_build_killed_at_any_moment_is_made_good_by_the_next(sandbox: Sandbox, tmp_path: Path) -> None:
    seed = int(os.environ.get("MODELBUILD_FAULT_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    sandbox.recipe(RECIPE)
    for number in range(ROUNDS):
        text = f"round {number} "
        sandbox.data("a.txt", text)
        jobs, how, after = chance.choice("12"), chance.choice(list(WAYS)), chance.uniform(0, LONGEST_S)
        told = f"seed {seed}, round {number}: -j {jobs}, {how} after {after:.3f} s"

        build = sandbox.start("build", "--json", "-j", jobs)
        time.sleep(after)
        way, codes = WAYS[how]
        way(build, sandbox)
        out, err = build.communicate(timeout=30)
        first = Ran(build.returncode, out, err)

        print(f"{told}: exit {first.code}, {len(first.built)} built")  # noqa: T201 - what the long form reports
        assert first.code in (0, *codes) or still_starting(first), (told, first)
        gone(sandbox, told)
        second = sandbox.build()
        assert second.code == 0, (told, second)
        assert not set(second.built) & set(first.built), (told, "finished stages were redone", first, second)
        assert held(sandbox) == content(text), told
        assert sandbox.run("verify").code == 0, told
        if number % 3 == 2:
            assert sandbox.run("gc").code == 0, told
            assert sandbox.leftovers() == [], told
            assert len(sandbox.keys()) == len(content("")), told
    clean = Sandbox(tmp_path / "clean", sandbox.plugins)
    clean.recipe(RECIPE)
    clean.data("a.txt", text)
    clean.built()
    assert digests(sandbox) == digests(clean)


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("builders", [2, 5])
def test_builders_of_the_same_target_build_each_key_once(sandbox: Sandbox, builders: int) -> None:
    sandbox.recipe(RECIPE)
    for number in range(max(1, ROUNDS // 6)):
        sandbox.data("a.txt", f"{number}")

        rans = finished([sandbox.start("build", "--json", "-j", "2") for _ in range(builders)])

        assert [ran.code for ran in rans] == [0] * builders, rans
        assert set(times_built(rans).values()) == {1}
        assert held(sandbox) == content(f"{number}")
        assert sandbox.built().built == []


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_builders_of_different_targets_share_what_they_share(sandbox: Sandbox) -> None:
    sandbox.recipe(RECIPE)
    sandbox.data("a.txt", "x")

    rans = finished([sandbox.start("build", "--json", target) for target in ("c", "d", "e")])

    assert [ran.code for ran in rans] == [0, 0, 0], rans
    assert set(times_built(rans).values()) == {1}
    assert sandbox.built().built == ["last"]
    assert held(sandbox) == content("x")


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_a_killed_builder_holds_the_other_up_no_longer(sandbox: Sandbox) -> None:
    sandbox.recipe(RECIPE)
    sandbox.data("a.txt", "x")

    first, second = sandbox.start("build", "--json"), sandbox.start("build", "--json")
    time.sleep(0.5)
    first.kill()
    (ran,) = finished([second])
    first.communicate()

    assert ran.code == 0, ran
    assert held(sandbox) == content("x")


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_gc_beside_builders_takes_nothing_they_need(sandbox: Sandbox) -> None:
    sandbox.recipe(RECIPE)
    for number in range(max(1, ROUNDS // 3)):
        sandbox.data("a.txt", f"{number}")
        build = sandbox.start("build", "--json", "-j", "2")
        while build.poll() is None:
            assert sandbox.run("gc").code == 0
        (ran,) = finished([build])

        assert ran.code == 0, ran
        assert held(sandbox) == content(f"{number}")
        assert sandbox.built().built == []


def still_starting(ran: Ran) -> bool:
    """Whether Python itself was interrupted, before a line of ours ran: it exits 1 with its own words."""
    return ran.code == 1 and not ran.out and "KeyboardInterrupt" in ran.err and "modelbuild" not in ran.err


def to_driver(number: signal.Signals) -> Way:
    return lambda build, sandbox: build.send_signal(number)


def to_group(number: signal.Signals) -> Way:
    return lambda build, sandbox: os.killpg(build.pid, number) if build.poll() is None else None


def kill_workers(build: subprocess.Popen[str], sandbox: Sandbox) -> None:
    for pid in workers(sandbox):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


WAYS: dict[str, tuple[Way, tuple[int, ...]]] = {
    "kill -9 the driver": (to_driver(signal.SIGKILL), (-9,)),
    "SIGTERM": (to_driver(signal.SIGTERM), (130, -15)),
    "SIGINT": (to_driver(signal.SIGINT), (130, -2)),
    "SIGINT to the group": (to_group(signal.SIGINT), (130, -2)),
    "kill -9 the group": (to_group(signal.SIGKILL), (-9,)),
    "kill -9 the workers": (kill_workers, (1,)),
}
"""How a build is ended, and its exit codes: a signal before Python handles it is the system's own."""


def finished(builds: list[subprocess.Popen[str]]) -> list[Ran]:
    rans = []
    for build in builds:
        out, err = build.communicate(timeout=60)
        rans.append(Ran(build.returncode, out, err))
    return rans


def times_built(rans: list[Ran]) -> collections.Counter[str]:
    return collections.Counter(e["key"] for ran in rans for e in ran.events if e["event"] == "built")


def workers(sandbox: Sandbox) -> list[int]:
    """Processes that build something of this project."""
    mark = str(sandbox.store).encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def gone(sandbox: Sandbox, told: str) -> None:
    """Wait until no process of the project is left; killed ones take a moment."""
    deadline = time.monotonic() + 10
    while left := workers(sandbox):
        assert time.monotonic() < deadline, (told, "orphans", left)
        time.sleep(0.02)
