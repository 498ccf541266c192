"""`modelbuild doctor`: what is wrong with this machine, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from modelbuild.commands.options import echo_json, json_option
from modelbuild.diagnosis import examine
from modelbuild.report.color import styled, wanted

STYLES = {"ok": "green", "note": "yellow", "wrong": "red"}


@click.command("doctor")
@click.option("-C", "--project", "folder", type=click.Path(path_type=Path), default=".", help="The project's folder.")
@json_option
def command(folder: Path, as_json: bool) -> int:
    """Check Python, packages, kinds, recipes and store, and say what to mend. Exits 1 when something is wrong."""
    findings = list(examine(folder))
    if as_json:
        echo_json(findings)
    else:
        color = wanted(sys.stdout)
        for f in findings:
            click.echo(f"{styled(f'{f.state:>5}', STYLES[f.state], color)}  {f.about}: {f.found}", color=color)
            if f.remedy:
                click.echo(f"       {f.remedy}")
    return int(any(f.state == "wrong" for f in findings))
