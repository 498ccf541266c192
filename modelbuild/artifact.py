"""What an artifact says of itself: the descriptor that travels with the files, and the artifact as a build sees it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from modelbuild.errors import problem

DESCRIPTOR = "descriptor.json"


class Tensor(msgspec.Struct, frozen=True):
    """A model input or output: its name, its numpy dtype name, and its shape with symbolic dimensions as strings."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Component(msgspec.Struct, frozen=True, omit_defaults=True):
    """One graph of the model: a model file relative to the artifact, with its inputs and outputs."""

    file: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a kind reads of its input instead of guessing from file names. No time and no path of the machine in it.

    `format`: safetensors, onnx, dataset, zip, ... (what `components`' files are).
    `task`: the transformers task name (feature-extraction, ...), where there is one.
    `components`: name -> graph; a single-graph model has the one component `model`.
    `tokenizer`: files (relative) that make up the tokenizer, and travel with the model.
    `extras`: other files (relative) that travel with the model: config, labels.
    `settings`: inference settings, JSON values: pooling, normalize, max_length, labels, ...
    `metrics`: figures that are a function of the artifact's content (never a timing).
    """

    format: str
    task: str | None = None
    precision: str | None = None
    components: dict[str, Component] = {}
    tokenizer: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    metrics: dict[str, float] = {}

    def model(self) -> Component:
        """The one component of a single-graph model; a `ProblemError` for any other."""
        if len(self.components) != 1:
            raise problem(
                "the input has not exactly one graph",
                format=self.format,
                components=", ".join(self.components) or "none",
            )
        return next(iter(self.components.values()))


class Artifact(msgspec.Struct, frozen=True):
    """A finished artifact: its folder (read-only) and what it says of itself."""

    path: Path
    descriptor: Descriptor

    @property
    def model_path(self) -> Path:
        """The model file of a single-graph artifact."""
        return self.path / self.descriptor.model().file


def read(folder: Path) -> Artifact:
    """The artifact in `folder`; a `ProblemError` when its descriptor is missing or makes no sense."""
    try:
        text = (folder / DESCRIPTOR).read_bytes()
        descriptor = msgspec.json.decode(text, type=Descriptor)
    except FileNotFoundError:
        raise problem(f"the artifact has no `{DESCRIPTOR}`", folder=folder) from None
    except (ValueError, RecursionError) as e:  # msgspec's errors, bytes that are no UTF-8, and bottomless nesting
        raise problem(f"the artifact's `{DESCRIPTOR}` is not understood", folder=folder, cause=e) from None
    for file in (*(c.file for c in descriptor.components.values()), *descriptor.tokenizer, *descriptor.extras):
        if not _is_inside(file):
            raise problem(f"the artifact's `{DESCRIPTOR}` names a file outside the artifact", folder=folder, file=file)
    return Artifact(folder, descriptor)


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in file


def write(folder: Path, descriptor: Descriptor) -> None:
    """Write the descriptor, the same bytes for the same value."""
    text = msgspec.json.format(msgspec.json.encode(descriptor, order="sorted"), indent=2)
    (folder / DESCRIPTOR).write_bytes(text + b"\n")
