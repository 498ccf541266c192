"""The long form of the fault, oracle and fuzz tests: the same tests, hundreds of rounds, and a table of findings.

    python -m tests.faults.long --rounds 300

A round is one build that is killed and made good; the other families take shares of that number. `--seed` repeats a
run's kills. Exits 1 when anything was found. How to read it: docs/howto/faults.md.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped)")


class Family(NamedTuple):
    """Tests that attack the same thing, and how many rounds of `rounds` they take."""

    name: str
    tests: tuple[str, ...]
    per_round: float
    variable: str
    of: str
    """What a round is."""


KILL, DAMAGE = "tests/faults/test_kill.py", "tests/faults/test_damage.py"
ROUNDS, EXAMPLES, FUZZ = "MODELBUILD_FAULT_ROUNDS", "MODELBUILD_ORACLE_EXAMPLES", "MODELBUILD_FUZZ_EXAMPLES"
FAMILIES = (
    Family("kills", (f"{KILL}::test_a_build_killed_at_any_moment_is_made_good_by_the_next",), 1, ROUNDS, "builds"),
    Family("builders", (KILL, "-k", "builders or killed_builder"), 0.3, ROUNDS, "rounds"),
    Family("gc", (KILL, "tests/cli/test_gc.py", "-k", "beside"), 0.1, ROUNDS, "rounds"),
    Family(
        "crashes", ("tests/cli/test_failures.py", "-k", "misbehaves or disk or edited or deleted"), 0, ROUNDS, "cases"
    ),
    Family("damage", (DAMAGE,), 0, ROUNDS, "cases"),
    Family("stat", ("tests/faults/test_sources.py",), 0, ROUNDS, "cases"),
    Family("oracle", ("tests/property",), 0.5, EXAMPLES, "random graphs with edits"),
    Family("fuzz", ("tests/fuzz", "tests/test_security.py"), 40, FUZZ, "inputs per reader"),
)


class Outcome(NamedTuple):
    """What a family's run came to; `findings` are its failed tests."""

    counts: dict[str, int]
    seconds: float
    findings: list[str]


def attack(family: Family, rounds: int, seed: int, log: Path) -> Outcome:
    """Run one family in a process of its own; all it says goes to `log`."""
    number = max(1, round(family.per_round * rounds))
    environment = {**os.environ, family.variable: str(number), "MODELBUILD_FAULT_SEED": str(seed)}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--timeout=86400", "-p", "no:cacheprovider", *family.tests]
    started = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False).returncode
    said = log.read_text(errors="replace")
    counts = {word: int(count) for count, word in COUNTS.findall(said.rsplit("\n", 3)[-2])}
    findings = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if code not in (0, 1):
        findings.append(f"pytest ended with status {code}")
    return Outcome(counts, time.monotonic() - started, findings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="builds to kill; the rest follows from it")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments of the kills")
    parser.add_argument("--only", action="append", choices=[f.name for f in FAMILIES], help="these families alone")
    parser.add_argument("--logs", type=Path, default=Path("fault-logs"), help="where each family's talk goes")
    options = parser.parse_args()
    options.logs.mkdir(exist_ok=True)
    print(f"seed {options.seed}, {os.cpu_count()} cores, logs in {options.logs}", flush=True)  # noqa: T201 - the report
    found: list[str] = []
    for family in FAMILIES:
        if options.only and family.name not in options.only:
            continue
        log = options.logs / f"{family.name}.log"
        outcome = attack(family, options.rounds, options.seed, log)
        number = (
            max(1, round(family.per_round * options.rounds)) if family.per_round else outcome.counts.get("passed", 0)
        )
        tests = ", ".join(f"{count} {word}" for word, count in outcome.counts.items())
        verdict = f"{len(outcome.findings)} findings"
        line = f"{family.name:10} {number:6} {family.of:26} {outcome.seconds:7.0f} s   tests: {tests}   {verdict}"
        print(line, *outcome.findings, sep="\n    ", flush=True)  # noqa: T201
        found += outcome.findings
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
