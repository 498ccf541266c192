"""The console blocks of the documentation run, and print what they say."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRACTION = re.compile(r"\d+\.\d+(?:e-\d+)?|\d+(?= s\b)")
PROGRESS = re.compile(r"    .*: \d+%\n")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.torch
@pytest.mark.parametrize(
    "page", [p for p in PAGES if CONSOLE.search(p.read_text())], ids=lambda p: str(p.relative_to(ROOT))
)
def test_console_blocks_do_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """Block by block in one copy of the repository's recipes. `...` stands for anything; fractions are not compared."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    checker = doctest.OutputChecker()
    for block in CONSOLE.findall(page.read_text()):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            actual = _run(command, tmp_path)
            said = f"$ {command}\n{actual}\n--- the page says:\n{expected}"
            assert checker.check_output(_settled(expected), _settled(actual), FLAGS), said


def _settled(text: str) -> str:
    """The text without what differs from machine to machine and from run to run."""
    lines = [line for line in text.splitlines(keepends=True) if not PROGRESS.fullmatch(line)]
    return FRACTION.sub("#", "".join(lines))


def _run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    return done.stdout
