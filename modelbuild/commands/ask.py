"""`modelbuild ask`: send text or tensors to a served target."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from modelbuild.artifact import Component
from modelbuild.commands.options import echo_json, json_option, opens_project, target_argument
from modelbuild.commands.served import served
from modelbuild.errors import BuildError, Problem, problem
from modelbuild.project import Project
from modelbuild.report import client

SHOWN = 8
EVENT = b"data: "


@click.command("ask")
@target_argument
@click.option("--text", "texts", multiple=True, help="A text; may be given again.")
@click.option("--question", "questions", multiple=True, help="A question; goes with `--context`.")
@click.option("--context", "contexts", multiple=True, help="Where the answer is to be found.")
@click.option(
    "--inputs",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON file with nested lists by input name, for models that take tensors.",
)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the request, such as `max_new_tokens=20` of a model that generates; may be given again.",
)
@click.option("--stream", is_flag=True, help="Print what a model generates as it comes, text after text.")
@click.option("--model", help="Another model of the repository, such as the graph behind a text model.")
@click.option("--url", default="127.0.0.1:8000", show_default=True, help="Where the server is.")
@click.option("--timeout", "seconds", default=60.0, show_default=True, help="Seconds to wait for the answer.")
@json_option
@opens_project
def command(
    project: Project,
    pattern: str,
    texts: tuple[str, ...],
    questions: tuple[str, ...],
    contexts: tuple[str, ...],
    file: Path | None,
    parameters: tuple[str, ...],
    stream: bool,
    model: str | None,
    url: str,
    seconds: float,
    as_json: bool,
) -> None:
    """Ask the server that serves TARGET, and print its answer.

    Any server of the Open Inference Protocol v2 will do that serves the target's model.
    """
    descriptor = served(project, pattern).descriptor
    streaming = descriptor.settings.get("stream")
    if stream and not streaming:
        raise problem("the target does not stream", task=descriptor.task or "none", hint="leave out `--stream`")
    name = model or (streaming if stream else descriptor.settings["model"])
    if name not in descriptor.components:
        raise problem(f"the target has no model `{name}`", models=", ".join(descriptor.components))
    asked, place = descriptor.components[name], url.removeprefix("http://")
    values = (
        _tensors(file, asked) if file else _texts(asked, {"text": texts, "question": questions, "context": contexts})
    )
    given = _parameters(parameters)
    if name == streaming:
        for text in values["text"]:
            _stream(place, name, {**given, "text": text[0]}, seconds, as_json)
        if not as_json:
            click.echo(f"\nthe same in your own client:\n\n{client.curl(place, name, asked, streams=True)}", err=True)
        return
    outputs = _infer(place, name, asked, values, given, seconds)
    if as_json:
        echo_json({"model": name, "outputs": {o["name"]: {"shape": o["shape"], "data": o["data"]} for o in outputs}})
        return
    for output in outputs:
        click.echo(f"{output['name']} {output['shape']}")
        width = max(1, len(output["data"]) // max(1, output["shape"][0] if output["shape"] else 1))
        for first in range(0, len(output["data"]), width):
            click.echo(f"  {_brief(output['data'][first : first + width])}")
    click.echo("\nthe same in your own client:\n", err=True)
    click.echo(client.python(url, name, asked), err=True)


def _texts(asked: Component, given: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Nested lists of shape (texts, 1) by input; a `ProblemError` unless they are the model's inputs, equally many."""
    needed = [t.name for t in asked.inputs]
    if not client.takes_text(asked):
        raise problem("this model takes tensors", inputs=", ".join(needed), hint="give them with `--inputs FILE`")
    options = ", ".join(f"`--{n}`" for n in needed)
    unknown = [n for n, texts in given.items() if texts and n not in needed]
    if unknown or not all(given.get(n) for n in needed):
        raise problem("this is not what the model takes", wanted=options)
    if len({len(given[n]) for n in needed}) > 1:
        raise problem(f"give as many of each: {options}")
    return {n: [[text] for text in given[n]] for n in needed}


def _tensors(file: Path, asked: Component) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as e:
        raise problem(f"`{file}` is not a JSON object", cause=e) from None
    missing = [t.name for t in asked.inputs if t.name not in given]
    if missing:
        raise problem(f"`{file}` has no `{missing[0]}`", wanted=", ".join(t.name for t in asked.inputs))
    return {t.name: given[t.name] for t in asked.inputs}


def _parameters(given: tuple[str, ...]) -> dict[str, Any]:
    """The request's parameters: numbers, true and false as such, the rest as strings."""
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise problem(f"`{one}` is not a parameter", wanted="NAME=VALUE")
        with contextlib.suppress(msgspec.MsgspecError):
            found[name] = msgspec.json.decode(value)
        if not isinstance(found.get(name), bool | int | float):
            found[name] = value
    return found


def _infer(
    url: str, name: str, asked: Component, values: dict[str, Any], parameters: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """The model's outputs (name, shape, flat data) over HTTP, by the Open Inference Protocol v2.

    A `BuildError` when no server is there, or when it refuses.
    """
    inputs = [
        {"name": t.name, "shape": _shape(values[t.name]), "datatype": client.datatype(t), "data": values[t.name]}
        for t in asked.inputs
    ]
    body = {"inputs": inputs, **({"parameters": parameters} if parameters else {})}
    with _answered(f"http://{url}/v2/models/{name}/infer", body, seconds) as reply:
        outputs: list[dict[str, Any]] = msgspec.json.decode(reply.read())["outputs"]
        return outputs


def _stream(url: str, name: str, body: dict[str, Any], seconds: float, as_json: bool) -> None:
    """Print what a model says to one text as it comes, by Triton's generate extension (server-sent events).

    A `BuildError` when no server is there, or when it refuses.
    """
    with _answered(f"http://{url}/v2/models/{name}/generate_stream", body, seconds) as reply:
        for line in reply:
            if not line.startswith(EVENT):
                continue
            event = msgspec.json.decode(line.removeprefix(EVENT))
            if "error" in event:
                raise _refused(event["error"], reply.url)
            if as_json:
                echo_json(event)
            else:
                click.echo(event["generated_text"], nl=False)
    if not as_json:
        click.echo()


@contextlib.contextmanager
def _answered(url: str, body: dict[str, Any], seconds: float) -> Iterator[Any]:
    """The server's reply to a JSON request; a `BuildError` when there is none, or when it refuses or breaks off."""
    request = urllib.request.Request(url, msgspec.json.encode(body), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            yield reply
    except urllib.error.HTTPError as e:
        raise _refused(e.read().decode("utf-8", "replace"), e.url) from None
    except (OSError, http.client.HTTPException, msgspec.MsgspecError, KeyError) as e:
        facts = (("cause", str(getattr(e, "reason", e))),)
        hint = "`modelbuild serve TARGET` starts one"
        raise BuildError(Problem(f"no server answers at {request.host}", facts=facts, hint=hint)) from None


def _refused(said: str, url: str | None) -> BuildError:
    return BuildError(Problem("the server refuses", facts=(("cause", said), ("url", str(url)))))


def _shape(value: Any) -> list[int]:
    """The shape of nested lists, by their first elements; the server checks the others."""
    return [len(value), *(_shape(value[0]) if value else [])] if isinstance(value, list) else []


def _brief(values: list[Any]) -> str:
    """One row of an answer, the first few of many numbers."""
    shown = " ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values[:SHOWN])
    return shown + (f" … ({len(values)})" if len(values) > SHOWN else "")
