"""What a build costs that has nothing, or next to nothing, to do: modelbuild beside make, ninja, doit, DVC, Snakemake.

`python benchmarks/noop.py --peer /tmp/peers/bin/python`; see README.md beside this file. Every tool has the same graph
of small targets: in each ten, six copies of source files, three of them in upper case, and one file joined of all.
Exits 1 when a tool did not do what it should.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import meter
from meter import BenchmarkError, Cost

REPOSITORY = Path(__file__).resolve().parent.parent
SIZES = (100, 1000, 5000)
SLOW_TOOLS_UP_TO = 100
"""Most targets that DVC and Snakemake are measured with: their first build takes minutes with more."""
PATIENCE_S = 360.0
"""Longest first build that is tried by default; a size that would take longer is left out, and that is said."""


class Target(NamedTuple):
    """A target of the graph: its name, what makes it (`text`, `upper` or `join`), and what from."""

    name: str
    kind: str
    inputs: tuple[str, ...]


def graph(size: int) -> list[Target]:
    """`size` targets in independent groups of ten; the inputs of a `text` are source files."""
    targets = []
    for g in range(size // 10):
        targets += [Target(f"t{g}_{i}", "text", (f"{g}_{i}.txt",)) for i in range(6)]
        targets += [Target(f"u{g}_{i}", "upper", (f"t{g}_{2 * i}",)) for i in range(3)]
        targets.append(Target(f"j{g}", "join", (*(f"u{g}_{i}" for i in range(3)), *(f"t{g}_{i}" for i in (1, 3, 5)))))
    return targets


COMMANDS = {
    "text": "cp {inputs} {out}",
    "upper": "tr a-z A-Z < {inputs} > {out}",
    "join": "cat {inputs} > {out}",
}


def command(target: Target) -> tuple[tuple[str, ...], str, str]:
    """Of a target as a file below `out`: its inputs as files, its own file, and the shell command."""
    inputs = tuple(f"src/{n}" if target.kind == "text" else f"out/{n}" for n in target.inputs)
    out = f"out/{target.name}"
    return inputs, out, COMMANDS[target.kind].format(inputs=" ".join(inputs), out=out)


class Tool(NamedTuple):
    """A build tool: how it is told the graph, and its commands."""

    write: Callable[[Path, Sequence[Target]], None]
    build: Sequence[str]
    status: Sequence[str]
    environment: Mapping[str, str]
    sources: str = "src"
    made: str = "out/{}"
    first: Sequence[str] = ()
    """How to build the first time, where not by `build`."""


def write_make(folder: Path, targets: Sequence[Target]) -> None:
    rules = [command(t) for t in targets]
    text = f"all: {' '.join(out for _, out, _ in rules)}\n"
    text += "".join(f"{out}: {' '.join(inputs)}\n\t@{line}\n" for inputs, out, line in rules)
    (folder / "Makefile").write_text(text)


def write_ninja(folder: Path, targets: Sequence[Target]) -> None:
    text = "rule run\n  command = $cmd\n"
    for inputs, out, line in map(command, targets):
        text += f"build {out}: run {' '.join(inputs)}\n  cmd = {line}\n"
    (folder / "build.ninja").write_text(text)


def write_doit(folder: Path, targets: Sequence[Target]) -> None:
    tasks = [
        {"name": out, "actions": [line], "file_dep": list(inputs), "targets": [out]}
        for inputs, out, line in map(command, targets)
    ]
    (folder / "dodo.py").write_text(f"TASKS = {tasks!r}\n\n\ndef task_all():\n    yield from TASKS\n")


def write_dvc(folder: Path, targets: Sequence[Target]) -> None:
    text = "stages:\n"
    for inputs, out, line in map(command, targets):
        text += f"  {out.removeprefix('out/')}:\n    cmd: {line}\n    deps: [{', '.join(inputs)}]\n    outs: [{out}]\n"
    (folder / "dvc.yaml").write_text(text)


def write_snakemake(folder: Path, targets: Sequence[Target]) -> None:
    rules = [command(t) for t in targets]
    text = f"rule all:\n    input: {[out for _, out, _ in rules]!r}\n"
    for inputs, out, line in rules:
        name = out.removeprefix("out/")
        text += f"rule {name}:\n    input: {list(inputs)!r}\n    output: {out!r}\n    shell: {line!r}\n"
    (folder / "Snakefile").write_text(text)


def write_recipe(folder: Path, targets: Sequence[Target]) -> None:
    lines = ["targets:"]
    for t in targets:
        given = {
            "text": f"path: src/{t.inputs[0]}",
            "upper": f"from: {t.inputs[0]}",
            "join": f"from: [{', '.join(t.inputs)}]",
        }[t.kind]
        lines.append(f"  {t.name}: {{kind: {t.kind}, {given}}}")
    (folder / "recipes" / "r.yaml").write_text("\n".join(lines) + "\n")
    sys.path.insert(0, str(REPOSITORY))
    from tests import plugin

    plugin.install(folder / "plugin")


def tools(peer: Path | None, modelbuild: Path) -> dict[str, Tool]:
    """The tools that are there."""
    beside = (lambda name: str(peer.with_name(name))) if peer else (lambda name: shutil.which(name) or "")
    ours = str(modelbuild.with_name("modelbuild"))
    ninja, doit, dvc, snakemake = map(beside, ("ninja", "doit", "dvc", "snakemake"))
    found = {
        "modelbuild": Tool(
            write_recipe,
            (ours, "build", "r"),
            (ours, "status"),
            {"PYTHONPATH": os.pathsep.join(filter(None, ("plugin", os.environ.get("PYTHONPATH"))))},
            sources="recipes/src",
            made="artifacts/r/{}/value.txt",
            first=(ours, "build", "r", "-j", "2"),
        ),
        "make": Tool(write_make, ("make",), ("make", "-q"), {}),
        "ninja": Tool(write_ninja, (ninja,), (ninja, "-n"), {}),
        "doit": Tool(write_doit, (doit,), (doit, "list", "--all", "--status"), {}),
        "Snakemake": Tool(write_snakemake, (snakemake, "-c1"), (snakemake, "-c1", "-n"), {"HOME": "/nonexistent"}),
        "DVC": Tool(write_dvc, (dvc, "repro"), (dvc, "status"), {}),
    }
    for name, tool in list(found.items()):
        if not shutil.which(tool.build[0]):
            meter.say(f"{name} is not here: left out")
            del found[name]
    return found


class Project:
    """A tool's copy of the graph."""

    def __init__(self, name: str, tool: Tool, folder: Path, targets: Sequence[Target]) -> None:
        self.name, self.tool, self.folder = name, tool, folder
        (folder / tool.sources).mkdir(parents=True)
        (folder / "out").mkdir()
        self.environment = {k: v.replace("plugin", str(folder / "plugin")) for k, v in tool.environment.items()}
        for t in targets:
            if t.kind == "text":
                (folder / tool.sources / t.inputs[0]).write_text(f"source of {t.name}\n")
        tool.write(folder, targets)
        if name == "DVC":
            self.run((*tool.build[:1], "init", "--no-scm"))
        self.run(tool.first or tool.build)

    def run(self, command: Sequence[str]) -> Cost:
        return meter.measure(command, self.folder, self.environment)

    def noop(self) -> Cost:
        """Build with nothing to do; `BenchmarkError` when something was made all the same."""
        before = self.stamps()
        cost = self.run(self.tool.build)
        if self.stamps() != before:
            raise BenchmarkError(f"{self.name} had nothing to do and did it:\n{cost.talk[-2000:]}")
        return cost

    def stamps(self) -> dict[Path, int]:
        """When each output was last made."""
        return {path: path.stat().st_mtime_ns for path in self.folder.glob(self.tool.made.format("*"))}

    def status(self) -> Cost:
        return self.run(self.tool.status)

    def change(self, group: int, text: str) -> Cost:
        """Edit a source and build; `BenchmarkError` when the edit did not arrive at the end of its group."""
        (self.folder / self.tool.sources / f"{group}_0.txt").write_text(f"{text}\n")
        cost = self.run(self.tool.build)
        made = (self.folder / self.tool.made.format(f"j{group}")).read_text()
        if not made.startswith(f"{text.upper()}\n"):
            raise BenchmarkError(f"{self.name} did not build `j{group}` anew:\n{cost.talk[-2000:]}")
        return cost


Seen = dict[str, dict[str, list[Cost]]]
"""Tool -> run -> its costs."""


def measure(size: int, rounds: int, found: Mapping[str, Tool], folder: Path) -> tuple[Seen, float]:
    """Every tool's runs on a graph of `size` targets, in turns; the seconds that modelbuild's first build took."""
    first = {}
    targets = graph(size)
    projects = []
    for name, tool in found.items():
        if size > SLOW_TOOLS_UP_TO and name in ("DVC", "Snakemake"):
            continue
        started = time.monotonic()
        projects.append(Project(name, tool, folder / name, targets))
        first[name] = time.monotonic() - started
        meter.say(f"{size} targets: {name} built them in {first[name]:.1f} s")
    seen: Seen = {project.name: {"no-op": [], "status": [], "one leaf": []} for project in projects}
    time.sleep(2.5)  # what was written just now is no longer young to anybody's stat cache
    for project in projects:
        project.noop()
    chance = random.Random(0)
    for number in range(rounds):
        group, text = chance.randrange(size // 10), f"edit {number} {os.urandom(4).hex()}"
        for project in projects if number % 2 == 0 else reversed(projects):
            seen[project.name]["no-op"].append(project.noop())
            seen[project.name]["status"].append(project.status())
            seen[project.name]["one leaf"].append(project.change(group, text))
            project.noop()
    return seen, first["modelbuild"]


def report(size: int, seen: Seen) -> str:
    """A size's medians as a Markdown table; the ratios are to modelbuild."""
    rows = []
    for name, runs in seen.items():
        row = [name]
        for run in ("no-op", "status", "one leaf"):
            cpu = meter.median(runs[run], "cpu_s")
            ratio = cpu / meter.median(seen["modelbuild"][run], "cpu_s")
            row += [f"{cpu:.3f}", f"{ratio:.2f}", f"{meter.median(runs[run], 'wall_s'):.2f}"]
        rows.append([*row, f"{max(meter.median(r, 'peak_mb') for r in runs.values()):.0f}"])
    head = [f"{size} targets"]
    for run in ("no-op", "status", "one leaf"):
        head += [f"{run} CPU-s", "ratio", "wall s"]
    return meter.table([*head, "MB"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="the interpreter of the peers' environment")
    default = REPOSITORY / ".venv" / "bin" / "python"
    parser.add_argument("--modelbuild", type=Path, default=default, help="the interpreter of modelbuild's environment")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="longest first build to try, in seconds")
    options = parser.parse_args()
    found = tools(options.peer, options.modelbuild)
    sys.stdout.write(f"{meter.machine()}; medians of {options.rounds} interleaved rounds; ratios to modelbuild.\n")
    rate = 0.0
    try:
        for size in options.sizes:
            if rate * size > options.patience:
                sys.stdout.write(f"\n{size} targets: left out, the first build would take {rate * size:.0f} s.\n")
                continue
            with tempfile.TemporaryDirectory(prefix="noop-") as folder:
                seen, first = measure(size, options.rounds, found, Path(folder))
                rate = first / size
            sys.stdout.write(f"\n{report(size, seen)}")
            sys.stdout.flush()
    except BenchmarkError as e:
        meter.say(f"error: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
