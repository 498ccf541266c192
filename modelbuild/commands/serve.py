"""`modelbuild serve`: start a Triton server of a target on this machine."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from types import FrameType

import click

from modelbuild.artifact import Descriptor
from modelbuild.commands import tritonserver
from modelbuild.commands.options import echo_json, json_option, opens_project, target_argument
from modelbuild.commands.served import repository
from modelbuild.project import Project
from modelbuild.report import client

CACHE = "--cache-config=local,size=67108864"


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
    """Serve TARGET, of kind `triton-repo`, on 127.0.0.1 until interrupted; print how to ask it when it is ready.

    The server is `--tritonserver`, else $MODELBUILD_TRITONSERVER, else `tritonserver` on the PATH. Options after `--`
    go to it.
    """
    made = repository(project, pattern)
    settings = made.descriptor.settings
    extra = [CACHE] if settings.get("response_cache") and not any("--cache-config" in m for m in more) else []
    ports = tritonserver.Ports(http_port, grpc_port, metrics_port)
    found = tritonserver.find(program)
    with tempfile.TemporaryDirectory(prefix="modelbuild-serve-") as folder:
        log = None if verbose else Path(folder) / "server.log"
        models = tritonserver.view((made.path / "models").resolve(), Path(folder) / "models")
        server = tritonserver.start(found, models, ports, log, [*extra, *more])
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            tritonserver.wait(server, ports, log, seconds)
            _tell(made.descriptor, http_port, grpc_port, as_json)
            return 0 if server.wait() == 0 else 1
        except KeyboardInterrupt:
            click.echo("stopping", err=True)
            return 0
        finally:
            tritonserver.stop(server)
            signal.signal(signal.SIGTERM, before)


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
    if stream:
        click.echo(f"{client.streaming(f'{tritonserver.LOOPBACK}:{grpc_port}', stream)}\n")
    click.echo(client.python(url, model, served.components[model]))
