"""`python -m modelbuild` is `modelbuild`."""

from modelbuild.cli import run

run()
