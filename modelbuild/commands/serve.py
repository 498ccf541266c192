"""`modelbuild serve`: start the server of a target on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from modelbuild.artifact import Artifact, Descriptor
from modelbuild.commands import container, tritonserver
from modelbuild.commands.options import echo_json, json_option, opens_project, target_argument
from modelbuild.commands.served import served
from modelbuild.errors import problem
from modelbuild.project import Project
from modelbuild.report import client

NEEDED = {"response_cache": "--cache-config=local,size=67108864", "rate_limiter": "--rate-limit=execution_count"}
"""What a server is to be started with, by the setting of the repository that asks for it."""


@click.command("serve")
@target_argument
@click.argument("more", nargs=-1, metavar="[-- OPTION...]")
@click.option("--tritonserver", "program", type=click.Path(path_type=Path), help="The server to start.")
@click.option("--http-port", default=8000, show_default=True)
@click.option("--grpc-port", default=8001, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
@click.option("--timeout", "seconds", default=300.0, show_default=True, help="Seconds to wait for the models.")
@click.option("--verbose", is_flag=True, help="Show what the server says.")
@json_option
@opens_project
def command(
    project: Project,
    pattern: str,
    more: tuple[str, ...],
    program: Path | None,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    seconds: float,
    verbose: bool,
    as_json: bool,
) -> int:
    """Serve TARGET on 127.0.0.1 until interrupted; print how to ask it when it is ready.

    A target of kind `triton-repo` is served by `--tritonserver`, else $MODELBUILD_TRITONSERVER, else `tritonserver` on
    the PATH; options after `--` go to it. One of kind `dockerfile` is served by the program that the container runs, in
    an environment with its packages, which is made where this one does not have them.
    """
    made = served(project, pattern)
    ours = made.descriptor.settings.get("runtime") == "onnxruntime"
    ports = tritonserver.Ports(http_port, grpc_port, metrics_port)
    before = signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="modelbuild-serve-") as name:
        folder, server = Path(name), None
        log = folder / "server.log"
        try:
            if ours:
                if program or more:
                    raise problem("the container's own server takes no options", hint="set `MODELSERVER_...` variables")
                server = container.start(made.path.resolve(), http_port, None if verbose else log)
                container.wait(server, http_port, None if verbose else log, seconds)
            else:
                server = _start_triton(made, folder, ports, program, more, None if verbose else log)
                tritonserver.wait(server, ports, None if verbose else log, seconds)
            _tell(made.descriptor, http_port, grpc_port, as_json)
            sys.stdout.flush()
            return 0 if server.wait() == 0 else 1
        except KeyboardInterrupt:
            click.echo("stopping", err=True)
            return 0
        finally:
            if server:
                tritonserver.stop(server)
            signal.signal(signal.SIGTERM, before)


def _start_triton(
    made: Artifact,
    folder: Path,
    ports: tritonserver.Ports,
    program: Path | None,
    more: tuple[str, ...],
    log: Path | None,
) -> subprocess.Popen[str]:
    """A tritonserver of a repository, or of the one that a Dockerfile is around."""
    settings = made.descriptor.settings
    extra = [
        option
        for setting, option in NEEDED.items()
        if settings.get(setting) and not any(m.startswith(option.partition("=")[0]) for m in more)
    ]
    repository = made.path / ("models" if made.descriptor.format == "triton-repo" else "model")
    found = tritonserver.find(program)
    view = tritonserver.view(repository.resolve(), folder / "models")
    return tritonserver.start(found, view, ports, log, [*extra, *more])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(served: Descriptor, http_port: int, grpc_port: int, as_json: bool) -> None:
    """Say where the models are, and how the one that is for users is asked, and the one that streams."""
    url, model, stream = f"{tritonserver.LOOPBACK}:{http_port}", served.settings["model"], served.settings.get("stream")
    if as_json:
        echo_json({"url": f"http://{url}", "model": model, "models": list(served.components)})
        return
    click.echo(f"serving {', '.join(served.components)} at http://{url}; Ctrl-C stops it\n")
    for name in (model, stream) if stream else (model,):
        command_line = client.curl(url, name, served.components[name], streams=name == stream)
        if command_line:
            click.echo(f"{command_line}\n")
    if stream and served.settings.get("runtime") != "onnxruntime":  # the container has no gRPC
        click.echo(f"{client.streaming(f'{tritonserver.LOOPBACK}:{grpc_port}', stream)}\n")
    click.echo(client.python(url, model, served.components[model]))
