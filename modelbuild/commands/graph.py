"""`modelbuild graph`: the targets as a drawing."""

from __future__ import annotations

import click

from modelbuild.commands.options import echo_json, json_option, opens_project, targets_argument
from modelbuild.graph import Graph
from modelbuild.project import Project


@click.command("graph")
@targets_argument
@click.option("--format", "form", type=click.Choice(["mermaid", "dot"]), default="mermaid", show_default=True)
@json_option
@opens_project
def command(project: Project, patterns: tuple[str, ...], form: str, as_json: bool) -> None:
    """Draw the TARGETs (default: all) and what they need as a Mermaid flowchart or a Graphviz DOT graph."""
    graph = project.graph
    names = graph.closure(project.select(patterns) if patterns else graph.nodes)
    if as_json:
        echo_json({"nodes": names, "edges": _edges(graph, names)})
    else:
        click.echo(mermaid(graph, names) if form == "mermaid" else dot(graph, names))


def _edges(graph: Graph, names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(input, target, field), in build order."""
    return [
        (source, name, field)
        for name in names
        for field, inputs in graph.nodes[name].inputs.items()
        for source in inputs
    ]


def mermaid(graph: Graph, names: tuple[str, ...]) -> str:
    """A flowchart in Mermaid, which GitHub and GitLab draw."""
    ids = {name: f"t{i}" for i, name in enumerate(names)}
    lines = ["flowchart LR"]
    lines += [f'    {ids[n]}["{_text(n)}<br/><i>{graph.nodes[n].kind}</i>"]' for n in names]
    lines += [f"    {ids[a]} {'-->' if f == 'from' else f'-->|{f}|'} {ids[b]}" for a, b, f in _edges(graph, names)]
    return "\n".join(lines)


def _text(name: str) -> str:
    return name.replace('"', "#quot;").replace("[", "#91;").replace("]", "#93;")


def dot(graph: Graph, names: tuple[str, ...]) -> str:
    """A digraph for Graphviz."""
    lines = ["digraph modelbuild {", "    rankdir=LR;", "    node [shape=box];"]
    lines += [f'    "{n}" [label="{n}\\n{graph.nodes[n].kind}"];' for n in names]
    lines += [
        f'    "{a}" -> "{b}"' + (";" if field == "from" else f' [label="{field}"];')
        for a, b, field in _edges(graph, names)
    ]
    return "\n".join([*lines, "}"])
