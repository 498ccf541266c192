"""Runs one kind as the worker does, in this process, with the driver's part (hashing sources) done by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild import artifact, job, kind, worker
from modelbuild.artifact import Artifact
from modelbuild.errors import ProblemError


class Heard(worker.Talk):
    """Keeps the messages instead of sending them."""

    def __init__(self) -> None:
        super().__init__(None)
        self.messages: list[job.AnyMessage] = []

    def __call__(self, message: job.AnyMessage) -> None:
        self.messages.append(message)

    @property
    def logs(self) -> list[str]:
        return [m.text for m in self.messages if isinstance(m, job.Log)]

    @property
    def progress(self) -> list[job.Progress]:
        return [m for m in self.messages if isinstance(m, job.Progress)]

    @property
    def metrics(self) -> dict[str, float]:
        return {m.name: m.value for m in self.messages if isinstance(m, job.Metric)}


def run_kind(
    name: str,
    folder: Path,
    options: Mapping[str, Any],
    *,
    inputs: Mapping[str, Artifact | Sequence[Artifact]] | None = None,
    sources: Mapping[str, Path] | None = None,
    history: Mapping[str, tuple[dict[str, Any], ...]] | None = None,
    names: Mapping[str, tuple[str, ...]] | None = None,
    heard: Heard | None = None,
) -> Artifact:
    """Build one artifact of kind `name` in `folder`; a failure raises the `ProblemError` a user would see.

    `options` are the recipe's fields; `inputs` and `sources` give the artifacts and paths of those that are
    references, sources or packages (their values in `options` are filled in here).
    """
    inputs, sources, heard = inputs or {}, sources or {}, heard or Heard()
    module = kind.load(name)
    roles = {f.name: f for f in kind.fields(module.Spec)}
    artifacts = {field: (one,) if isinstance(one, Artifact) else tuple(one) for field, one in inputs.items()}
    values = dict(options)
    for field, many in artifacts.items():
        texts = [a.path.name for a in many]
        values[field] = texts if roles[field].many and len(texts) != 1 else texts[0]
    uses = {}
    for field, path in sources.items():
        values.setdefault(field, path.name)
        uses[field] = job.SourceUse(path, _files(path, roles[field]))
    spec = msgspec.convert(values, module.Spec)
    task = job.Job(
        kind=name,
        spec=msgspec.to_builtins(spec),
        inputs={f.name: tuple(a.path for a in artifacts.get(f.name, ())) for f in roles.values() if f.role == "ref"},
        sources=uses,
        history=dict(history or {}),
        out=folder / "out",
        scratch=folder / "scratch",
        names=dict(names or {}),
    )
    task.out.mkdir(parents=True)
    task.scratch.mkdir()
    if not worker.run(task, heard):
        (failed,) = (m for m in heard.messages if isinstance(m, job.Failed))
        raise ProblemError(*failed.problems)
    return artifact.read(task.out)


def _files(path: Path, role: kind.FieldRole) -> tuple[Path, ...]:
    if path.is_dir():
        found = [p for pattern in role.files or ("**/*",) for p in path.glob(pattern) if p.is_file()]
        return tuple(sorted(set(found)))
    names = [pattern.format(name=path.name, stem=path.stem) for pattern in role.siblings]
    return (path, *sorted(p for n in names if (p := path.with_name(n)).is_file()))
