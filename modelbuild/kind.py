"""What a target kind is: the field types that carry meaning, the build's `Context`, and the table of kinds.

A kind is a module:

- its docstring is its reference page;
- `VERSION` (int) is raised when the same inputs would give another output;
- `TOOLS` maps each package whose version enters the key to the extra that installs it ({"onnx": "cpu"});
- `HARDWARE` (facts such as the GPU's `sm`) and `RESOURCES` (such as `gpu`) are tuples of names, usually empty;
- `Spec` is a frozen msgspec Struct that forbids unknown fields. A field of type `Ref` is an edge, hashed by the
  input's content; `Source` is a file or folder, hashed by content; `Package` is a folder of an installed Python
  package, hashed by content; all else is an option, hashed by value. There is no opt-out;
- `build(spec, ctx)` makes the artifact in `ctx.out`;
- optional: `tools(spec)`, `hardware(spec)` and `resources(spec)` narrow `TOOLS`, `HARDWARE` and `RESOURCES` to what
  this spec uses. Where hardware is a mapping of names to texts, the text says what helps where the machine lacks it;
- a kind with a `Varied` field has `tries(spec)`: for each target of the field, as the recipe names it, the options that
  `Context.vary` may change, and values of them (all, or the ends of a range), which are checked when recipes are read.

A kind imports heavy libraries inside `build` only: the driver imports the module to read its `Spec`.
"""

from __future__ import annotations

import functools
import importlib
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec

from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError, suggestion

Role: TypeAlias = Literal["ref", "source", "package", "option"]


class RoleMark(msgspec.Struct, frozen=True):
    """Marks a string type as an edge, a source or a package (the `Annotated` metadata behind `Ref` and its like)."""

    role: Role


class Files(msgspec.Struct, frozen=True):
    """Narrows a folder `Source` or `Package` to what the kind reads: glob patterns relative to the folder.

    A file that matches none of them is no part of the target: adding one changes nothing.
    """

    patterns: tuple[str, ...]


class Siblings(msgspec.Struct, frozen=True):
    """Widens a file `Source` to files beside it: patterns in which `{name}` and `{stem}` are the file's."""

    patterns: tuple[str, ...]


class Anywhere(msgspec.Struct, frozen=True):
    """Lets a `Source` name an absolute path outside the project (big weights and data live elsewhere)."""


class Lineage(msgspec.Struct, frozen=True):
    """Makes a `Ref` hash how its input was made too, for kinds that write the build history into their output."""


class Named(msgspec.Struct, frozen=True):
    """Makes a `Ref` hash its targets' names too, for kinds that write them down (`Context.names`)."""


class Varied(msgspec.Struct, frozen=True):
    """Makes the targets of a `Ref` those whose options the build may try with other values (`Context.vary`)."""


Ref = Annotated[str, RoleMark("ref"), msgspec.Meta(description="the name of a target", min_length=1)]
Source = Annotated[str, RoleMark("source"), msgspec.Meta(description="a path relative to the recipe", min_length=1)]
Package = Annotated[
    str,
    RoleMark("package"),
    msgspec.Meta(description="a folder inside an installed Python package: `package/folder`", min_length=1),
]


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a target; each kind derives its own. `__post_init__` may raise `SpecError`."""


class SpecError(ValueError):
    """Options that do not fit together; `field` names the one to point at."""

    def __init__(self, title: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(title)
        self.title, self.field, self.hint = title, field, hint


class FieldRole(msgspec.Struct, frozen=True):
    """What a spec field means: its role and, for those that have them, the marks that narrow it."""

    name: str
    """As the recipe spells it (`from`)."""
    attribute: str
    """As Python spells it (`from_`)."""
    role: Role
    many: bool
    """Whether the field takes a list."""
    type: Any
    required: bool
    files: tuple[str, ...] = ()
    siblings: tuple[str, ...] = ()
    anywhere: bool = False
    lineage: bool = False
    named: bool = False
    varied: bool = False


@functools.cache
def fields(spec: type[msgspec.Struct]) -> tuple[FieldRole, ...]:
    """The fields of a `Spec` in order, each with its role as its type tells it."""
    hints = typing.get_type_hints(spec, include_extras=True)
    return tuple(_field_role(f.encode_name, f.name, hints[f.name], f.required) for f in msgspec.structs.fields(spec))


def _field_role(name: str, attribute: str, hint: Any, required: bool) -> FieldRole:
    marks, many = _marks(hint)
    by_type = {type(m): m for m in marks}
    mark = by_type.get(RoleMark)
    return FieldRole(
        name=name,
        attribute=attribute,
        role=mark.role if mark else "option",
        many=many,
        type=hint,
        required=required,
        files=by_type[Files].patterns if Files in by_type else (),
        siblings=by_type[Siblings].patterns if Siblings in by_type else (),
        anywhere=Anywhere in by_type,
        lineage=Lineage in by_type,
        named=Named in by_type,
        varied=Varied in by_type,
    )


def _marks(hint: Any) -> tuple[list[Any], bool]:
    """The metadata found in a type, through unions and lists; whether a list was among them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, many = _marks(arguments[0])
        return inner + list(arguments[1:]), many
    if origin in (typing.Union, types.UnionType, list, tuple):
        found = [_marks(a) for a in arguments]
        marks = [m for inner, _ in found for m in inner]
        return marks, any(many for _, many in found) or (origin in (list, tuple) and bool(marks))
    return [], False


class Context(Protocol):
    """All that a build may touch."""

    out: Path
    """The empty folder in which the artifact is made."""
    scratch: Path
    """An empty folder for temporary files, removed after the build."""
    inputs: Mapping[str, tuple[Artifact, ...]]
    """The finished artifacts of each `Ref` field, by the field's name in the recipe; empty where it was left out."""
    sources: Mapping[str, Path]
    """The absolute path of each `Source` and `Package` field that was given."""

    def input(self, field: str = "from") -> Artifact:
        """The one artifact of a `Ref` field."""

    def source_files(self, field: str) -> tuple[Path, ...]:
        """The files of a `Source` or `Package` that were hashed, absolute, sorted: read no others."""

    def history(self, field: str) -> tuple[dict[str, Any], ...]:
        """For a `Lineage` field: the manifest of every stage above, inputs before what was made of them."""

    def names(self, field: str) -> tuple[str, ...]:
        """For a `Named` field: what the recipe calls its inputs (`int8[calibrate=minmax]`), in their order."""

    def options(self, field: str) -> tuple[dict[str, Any], ...]:
        """For a `Varied` field: the options of its targets as the recipe has them, in their order."""

    def vary(self, label: str, changes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, tuple[Artifact, ...]]:
        """For a kind with a `Varied` field: `inputs` as they are when options of its targets have other values.

        `changes` is target -> option -> value. What differs is built, or taken from the store, as any target is; a
        `ProblemError` where that fails. `label` tells these builds from the recipe's own.
        """

    def link(self, src: Path, dst: Path) -> None:
        """Put the file or folder `src` at `dst`: a reflink, else (from an artifact) a hard link, else a copy."""

    def describe(self, descriptor: Descriptor) -> None:
        """Write the artifact's descriptor; every kind calls it once."""

    def progress(self, done: float, total: float, what: str) -> None:
        """Say how far the build is; cheap enough to call often."""

    def log(self, text: str) -> None:
        """One line for the user and the log: what was done, with figures."""

    def metric(self, name: str, value: float, unit: str = "") -> None:
        """A figure for the record (it may be a timing, unlike the descriptor's)."""


class Kind(Protocol):
    """A kind as the driver sees it (see the module docstring)."""

    __doc__: str | None
    __name__: str
    VERSION: int
    TOOLS: Mapping[str, str]
    HARDWARE: tuple[str, ...]
    RESOURCES: tuple[str, ...]
    Spec: type[msgspec.Struct]
    build: Callable[[Any, Context], None]


def used_tools(kind: Kind, spec: msgspec.Struct) -> Collection[str]:
    """The packages whose versions enter this target's key."""
    return _narrowed(kind, "TOOLS", spec)


def used_hardware(kind: Kind, spec: msgspec.Struct) -> Mapping[str, str]:
    """The facts of the machine that enter this target's key, each with what helps where the machine lacks it."""
    used = _narrowed(kind, "HARDWARE", spec)
    return used if isinstance(used, Mapping) else dict.fromkeys(used, "build it on a machine that has one")


def used_resources(kind: Kind, spec: msgspec.Struct) -> Collection[str]:
    """What this target's build needs for itself while it runs."""
    return _narrowed(kind, "RESOURCES", spec)


def tried(kind: Kind, spec: msgspec.Struct) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """What `Context.vary` may change: target -> option -> values; empty for a kind without `tries`."""
    tries: Callable[[Any], Mapping[str, Mapping[str, Sequence[Any]]]] | None = getattr(kind, "tries", None)
    return tries(spec) if tries else {}


def _narrowed(kind: Kind, name: str, spec: msgspec.Struct) -> Collection[str]:
    """The kind's constant, or what its function of the same name in lower case says of the spec."""
    narrow: Callable[[Any], Collection[str]] | None = getattr(kind, name.lower(), None)
    constant: Collection[str] = getattr(kind, name)
    return constant if narrow is None else narrow(spec)


BUILTIN: Mapping[str, str] = {
    "checkpoint": "modelbuild.kinds.checkpoint",
    "dataset": "modelbuild.kinds.dataset",
    "onnx": "modelbuild.kinds.onnx",
    "fused": "modelbuild.kinds.fused",
    "int8": "modelbuild.kinds.int8",
    "fp16": "modelbuild.kinds.fp16",
    "int4": "modelbuild.kinds.int4",
    "trt-plan": "modelbuild.kinds.trt_plan",
    "verified": "modelbuild.kinds.verified",
    "benchmark": "modelbuild.kinds.benchmark",
    "ranked": "modelbuild.kinds.ranked",
    "tuned": "modelbuild.kinds.tuned",
    "zip": "modelbuild.kinds.zip",
    "triton-repo": "modelbuild.kinds.triton_repo",
    "dockerfile": "modelbuild.kinds.dockerfile",
}
"""The kinds that ship with modelbuild, by name; a plugin adds its own by the entry-point group `modelbuild.kinds`."""


@functools.cache
def plugins() -> Mapping[str, str]:
    """Kinds of installed packages: name -> module. A built-in name or one name given twice is a `ProblemError`."""
    from importlib.metadata import entry_points

    found: dict[str, str] = {}
    for entry in entry_points(group="modelbuild.kinds"):
        taken = BUILTIN.get(entry.name) or found.get(entry.name)
        if taken is not None and taken != entry.value:
            raise ProblemError(
                Problem(
                    f"kind `{entry.name}` is defined twice",
                    facts=(("by", taken), ("and by", entry.value)),
                    hint="uninstall one of the two packages, or rename its kind",
                )
            )
        found[entry.name] = entry.value
    return found


def names() -> list[str]:
    """Every kind's name, plugins included."""
    return sorted({**BUILTIN, **plugins()})


@functools.cache
def load(name: str) -> Kind:
    """The kind called `name`; a `ProblemError` with a suggestion when there is none or its module does not import."""
    module = BUILTIN.get(name) or plugins().get(name)
    if module is None:
        known = names()
        raise ProblemError(
            Problem(
                f"unknown kind `{name}`",
                facts=(("kinds", ", ".join(known)),),
                hint=suggestion(name, known) or "`modelbuild kinds` lists the kinds",
            )
        )
    try:
        return _checked(typing.cast(Kind, importlib.import_module(module)))
    except Exception as e:  # importing a plugin runs anybody's code
        cause = f"{type(e).__name__}: {e}".splitlines()[0]
        facts = (("module", module), ("cause", cause))
        raise ProblemError(Problem(f"kind `{name}` cannot be loaded", facts=facts)) from e


def _checked(module: Kind) -> Kind:
    """The module, if it is a kind; an `AttributeError` names what it lacks."""
    for name in ("VERSION", "TOOLS", "HARDWARE", "RESOURCES", "Spec", "build"):
        getattr(module, name)
    fields(module.Spec)
    return module
