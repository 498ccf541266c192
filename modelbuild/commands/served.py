"""What `serve` and `ask` share: the served model that a target is."""

from __future__ import annotations

from modelbuild import artifact
from modelbuild.artifact import Artifact
from modelbuild.commands.show import record_of
from modelbuild.errors import problem
from modelbuild.project import Project

FORMATS = ("triton-repo", "dockerfile")


def served(project: Project, pattern: str) -> Artifact:
    """The artifact of the one target that a pattern means; a `ProblemError` unless it is something to serve."""
    name = project.one(pattern)
    made = artifact.read(project.store.out(record_of(project, name).key))
    if made.descriptor.format not in FORMATS:
        raise problem(
            f"`{name}` is not something to serve",
            format=made.descriptor.format,
            hint=f"add a target `{{kind: {FORMATS[0]}, from: {project.graph.nodes[name].short}}}`",
        )
    return made
