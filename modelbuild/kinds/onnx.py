"""A model as ONNX, exported from a checkpoint or adopted from an existing file.

**Export** (`from:`) writes the fp32 graph of a checkpoint for a task, with dynamic batch and sequence. It is then run
in ONNX Runtime beside the PyTorch model at several shapes (batch 1, odd lengths and padded rows among them); if an
output differs by more than `tolerance` the build fails. The default exporter, `torchscript`, writes the graph that ONNX
Runtime's fusions recognise whole, in a tenth of the time of `dynamo`.

**Adopt** (`path:`) takes a finished ONNX file and needs no PyTorch. The file is checked, its weights must lie beside
it, and it is run once with made-up inputs. External data is found by its usual names (`<name>.data`, `<name>_data`,
`<stem>.data`, `<stem>.bin`, ...); name the folder instead when it has others, with one `.onnx` file in it.
`tokenizer:` takes the tokenizer and inference settings along from another target.

Both are reproducible byte for byte: the exported file has no path, time or version in it.

```yaml
targets:
  onnx:    {kind: onnx, from: checkpoint, task: feature-extraction}
  adopted: {kind: onnx, path: models/encoder.onnx, tokenizer: checkpoint}
```
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import problem, suggestion
from modelbuild.kind import Anywhere, Context, Files, Ref, Siblings, Source, SpecError
from modelbuild.lib.checkpoint_files import EXTRAS, TOKENIZER
from modelbuild.lib.export_tasks import OPSETS, TASKS, require_supported

VERSION = 1
TOOLS = {
    "torch": "export",
    "transformers": "export",
    "onnxscript": "export",
    "onnx": "cpu",
    "onnxruntime": "cpu",
    "tokenizers": "cpu",
}
HARDWARE = ()
RESOURCES = ()

DEFAULT_TASK = "feature-extraction"
DEFAULT_TOLERANCE = 1e-4
BESIDE = Siblings(("{name}.data", "{name}_data", "{stem}.data", "{stem}.bin", "{stem}.weights"))
FOLDER = Files(("*.onnx", "*.data", "*.onnx_data", "*.bin", "*.weights", *TOKENIZER, *EXTRAS))


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Annotated[Ref, Meta(description="The checkpoint to export.")] | None = None
    path: (
        Annotated[
            Source,
            FOLDER,
            BESIDE,
            Anywhere(),
            Meta(description="An ONNX file to adopt, or a folder that holds one and its weights."),
        ]
        | None
    ) = None
    tokenizer: Annotated[Ref, Meta(description="Where an adopted model's tokenizer and settings come from.")] | None = (
        None
    )
    task: Annotated[
        str | None, Meta(description="The model's transformers task; `feature-extraction` for an export.")
    ] = None
    opset: Annotated[
        int | None, Meta(description="The ONNX operator set to export; by default 17, with `dynamo` 20.")
    ] = None
    exporter: Annotated[
        Literal["torchscript", "dynamo"], Meta(description="Which of PyTorch's two exporters to use.")
    ] = "torchscript"
    tolerance: Annotated[
        float,
        Meta(description="Largest allowed difference from the checkpoint, as a part of the output's largest value."),
    ] = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        if (self.from_ is None) == (self.path is None):
            title = "says not what to export or adopt" if self.path is None else "`from` and `path` exclude each other"
            hint = "give `from:` a checkpoint to export, or `path:` an ONNX file to adopt"
            raise SpecError(title, field="path" if self.path else None, hint=hint)
        if self.path is not None:
            for field, default in (("opset", None), ("exporter", "torchscript"), ("tolerance", DEFAULT_TOLERANCE)):
                if getattr(self, field) != default:
                    raise SpecError(f"`{field}` is for exporting, and `path` adopts a finished file", field=field)
            return
        if self.tokenizer is not None:
            raise SpecError("`tokenizer` goes with `path`: an export takes the checkpoint's", field="tokenizer")
        if self.task is not None and self.task not in TASKS:
            hint = suggestion(self.task, TASKS) or f"supported: {', '.join(TASKS)}"
            raise SpecError(f"the task `{self.task}` cannot be exported", field="task", hint=hint)
        low, high = OPSETS[self.exporter]
        if self.opset is not None and not low <= self.opset <= high:
            raise SpecError(f"`{self.exporter}` exports opset {low} to {high}", field="opset")
        if not self.tolerance > 0:
            raise SpecError("`tolerance` must be positive", field="tolerance")


def tools(spec: Spec) -> Collection[str]:
    """Adopting needs no PyTorch; onnxscript is dynamo's."""
    light = {"onnx", "onnxruntime", "tokenizers"}
    if spec.path is not None:
        return light
    return light | {"torch", "transformers"} | ({"onnxscript"} if spec.exporter == "dynamo" else set())


def build(spec: Spec, ctx: Context) -> None:
    if spec.path is None:
        _export(spec, ctx)
    else:
        _adopt(spec, ctx)


def _export(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import export

    source, task = ctx.input("from"), spec.task or DEFAULT_TASK
    described = source.descriptor
    if described.format != "safetensors":
        raise problem(
            "only a checkpoint can be exported",
            format=described.format,
            hint="`from:` takes a target of kind `checkpoint`; `path:` adopts an ONNX file",
        )
    require_supported(described.settings["model_type"], task)
    _require_fit(source, described.settings.get("vocab_size"))
    done = export.export(
        source.path,
        ctx.out,
        model_type=described.settings["model_type"],
        task=task,
        exporter=spec.exporter,
        opset=spec.opset,
        tolerance=spec.tolerance,
        progress=ctx.progress,
    )
    shapes = ", ".join(f"{b}x{s}" for b, s in export.CHECKED_SHAPES)
    ctx.log(f"equal to the checkpoint within {done.difference:.1e} of the outputs' largest value at {shapes}")
    ctx.metric("difference", done.difference)
    _carry(source, ctx)
    metrics = {k: v for k, v in described.metrics.items() if k == "parameters"}
    ctx.describe(
        Descriptor(
            format="onnx",
            task=task,
            precision="fp32",
            components={"model": done.component},
            tokenizer=described.tokenizer,
            extras=described.extras,
            settings=described.settings,
            metrics=metrics,
        )
    )


def _adopt(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import adopt, onnx_files

    path = _the_model(ctx)
    found = adopt.examine(path, ctx.source_files("path"))
    ctx.link(path, ctx.out / onnx_files.MODEL)
    for file in found.beside:
        ctx.link(file, ctx.out / file.relative_to(path.parent))
    ctx.progress(0, 1, "run the model once")
    ctx.log(adopt.try_out(path, found.component))
    ctx.progress(1, 1, "run the model once")
    carried = _companion(ctx, path, found.rows)
    settings = carried.settings | ({"vocab_size": found.rows} if found.rows else {})
    descriptor = msgspec.structs.replace(
        carried, format="onnx", task=spec.task, components={"model": found.component}, settings=settings
    )
    ctx.describe(descriptor)


def _the_model(ctx: Context) -> Path:
    """The ONNX file that `path` names or that the folder holds."""
    path = ctx.sources["path"]
    if not path.is_dir():
        return path
    found = [p for p in ctx.source_files("path") if p.suffix == ".onnx"]
    if len(found) != 1:
        raise problem(
            f"the folder `{path.name}` holds {len(found)} ONNX files, not one",
            found=", ".join(p.name for p in found) or "none",
            hint="name the file to take",
        )
    return found[0]


def _companion(ctx: Context, path: Path, rows: int | None) -> Descriptor:
    """Tokenizer, extras and settings that travel with an adopted model, put in place: the named target's, else those
    that lie in the adopted folder."""
    if ctx.inputs.get("tokenizer"):
        source = ctx.input("tokenizer")
        _require_fit(source, rows)
        _carry(source, ctx)
        given = source.descriptor
        return Descriptor(format="onnx", tokenizer=given.tokenizer, extras=given.extras, settings=given.settings)
    if not ctx.sources["path"].is_dir():
        return Descriptor(format="onnx")
    from modelbuild.lib import checkpoint_files as lib
    from modelbuild.lib import inference_settings

    files = {p.relative_to(path.parent).as_posix(): p for p in ctx.source_files("path")}
    tokenizer, extras = lib.matching(files, lib.TOKENIZER), lib.matching(files, lib.EXTRAS)
    for name in (*tokenizer, *extras):
        ctx.link(files[name], ctx.out / name)
    settings = inference_settings.settings(files, lib.read_config(files)) if lib.CONFIG in files else {}
    own = Descriptor(format="onnx", tokenizer=tokenizer, extras=extras, settings=settings)
    _require_fit(Artifact(ctx.out, own), rows)
    return own


def _require_fit(source: Artifact, rows: int | None) -> None:
    """A `ProblemError` when the tokenizer has ids for which the model has no embedding."""
    from modelbuild.lib import tokenizing

    if rows is None or tokenizing.FILE not in source.descriptor.tokenizer:
        return
    size = tokenizing.Tokenizer(source).vocab_size
    if size > rows:
        raise problem(
            "the tokenizer does not fit the model",
            tokenizer=f"token ids up to {size - 1}",
            model=f"embeddings for ids up to {rows - 1}",
            hint="take the tokenizer the model was trained with; after adding tokens, resize the embeddings",
        )


def _carry(source: Artifact, ctx: Context) -> None:
    """Put the tokenizer and the extras of an artifact beside the model."""
    for name in (*source.descriptor.tokenizer, *source.descriptor.extras):
        ctx.link(source.path / name, ctx.out / name)
