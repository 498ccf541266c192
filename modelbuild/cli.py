"""The command line: finds the verb, and turns every failure into an exit code and words."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Mapping

import click

from modelbuild import __version__
from modelbuild.errors import Problem, ProblemError, from_os_error

COMMANDS: Mapping[str, str] = {
    "build": "Bring targets up to date, and only what is stale under them.",
    "status": "Show which targets are up to date.",
    "plan": "Say what a build would do, and why.",
    "why": "Say why a target is stale, or why it was last built.",
    "list": "List the targets.",
    "show": "Show an artifact: its model, metrics, files and how it was made.",
    "diff": "Compare two artifacts: how they were made and what came out.",
    "report": "Put what was measured of the targets beside each other.",
    "graph": "Draw the targets as Mermaid or DOT.",
    "clean": "Remove targets' artifacts.",
    "pin": "Keep artifacts through every gc.",
    "gc": "Remove artifacts that no recipe names any more.",
    "verify": "Read every artifact back and compare it with its record.",
    "serve": "Start a Triton server of a target on this machine.",
    "ask": "Send text or tensors to a served target.",
    "kinds": "List the target kinds, or document one.",
    "schema": "Print the JSON Schema of recipes, for editors.",
    "init": "Write a first recipe for a model.",
    "doctor": "Check this machine, and say what to mend.",
    "completion": "Print the completion script of a shell.",
}
"""Verb -> its line in `--help`. A verb's module is imported when it is used."""


class LazyGroup(click.Group):
    """A group whose commands are modules of `modelbuild.commands`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"modelbuild.commands.{name}").command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from modelbuild.errors import suggestion

            hint = suggestion(args[0], COMMANDS) or "`modelbuild --help` lists the commands"
            raise ProblemError(Problem(f"unknown command `{args[0]}`", hint=hint))
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="modelbuild", message="%(prog)s %(version)s")
def cli() -> None:
    """Make for model artifacts: one YAML recipe per model, only stale stages rebuild."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code (see docs/reference/cli.md)."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        result = cli.main(given, prog_name="modelbuild", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ProblemError as e:
        _tell(e.problems, "--json" in given)
        return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        return 2
    except click.ClickException as e:
        _tell((_usage_problem(e),), "--json" in given)
        return 2
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        _tell((from_os_error(e),), "--json" in given)
        return 2
    except Exception as e:
        from modelbuild.report.bug import report

        click.echo(report(e, given), err=True)
        return 3


def _usage_problem(error: click.ClickException) -> Problem:
    message = error.format_message().rstrip(".")
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"`{error.ctx.command_path} --help` shows the options"
    return Problem(message[:1].lower() + message[1:], hint=hint)


def _tell(problems: tuple[Problem, ...], as_json: bool) -> None:
    """Problems as text on stderr, or as JSON on stdout where JSON was asked for."""
    if as_json:
        from modelbuild.report import jsonl

        click.echo(jsonl.text({"problems": problems}))
        return
    from modelbuild.report.color import wanted
    from modelbuild.report.errors import render

    color = wanted(sys.stderr)
    click.echo(render(problems, color), err=True, color=color)


def run() -> None:
    """The `modelbuild` script. A command is over before garbage adds up: looking for it costs a twentieth of one."""
    gc.disable()
    sys.exit(main())


if __name__ == "__main__":
    run()
