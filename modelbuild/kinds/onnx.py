"""A model as ONNX: exported from a checkpoint or from plain PyTorch, or adopted from an existing file.

**Export** (`from:`) writes the fp32 graphs of a checkpoint for a task, with dynamic batch and sequence. Each is then
run in ONNX Runtime beside the PyTorch model at several shapes (batch 1, odd lengths and padded rows among them; caches
of several lengths, empty ones too); if an output differs by more than `tolerance` the build fails.

| task | inputs | outputs |
| --- | --- | --- |
| `feature-extraction` | text | `last_hidden_state` [batch, sequence, width] |
| `text-classification` | text | `logits` [batch, labels] |
| `token-classification` | text | `logits` [batch, sequence, labels] |
| `question-answering` | text | `start_logits`, `end_logits` [batch, sequence] |
| `fill-mask` | text | `logits` [batch, sequence, vocabulary] |
| `image-classification` | `pixel_values` | `logits` [batch, labels] |
| `image-feature-extraction` | `pixel_values` | `last_hidden_state` [batch, patches, width] |
| `text-generation` | text, cache | `logits` [batch, sequence, vocabulary], grown cache |
| `text2text-generation` | two graphs, see below | |
| `automatic-speech-recognition` | two graphs, see below | |

Text is `input_ids` and `attention_mask`, with `token_type_ids` where the model has segments. Without `task` it is what
the checkpoint is for by its own files. Any architecture for which transformers has a class with the task's head is
tried, and stands if its graph computes what the model does.

**Generation** has a key-value cache unless `use_cache: false`. `text-generation` is one graph for the prompt and for
every token after it: `past_key_values.0.key`, ... [batch, heads, past_sequence, size], of length 0 at the start, come
back longer as `present.0.key`, ... . The attention mask covers past and new tokens; positions follow from it, so
prompts of a batch are padded on the left. Text to text and speech are the graphs `encoder` and `decoder`: the encoder
gives the keys and values of the cross attention (`present.0.encoder.key`, ...), which the decoder takes at every step,
and the decoder's own cache (`past_key_values.0.decoder.key`, ...) starts with length 0 and grows. What a server needs
besides is in the settings: `labels`, `generation` (token ids that start and end a text), `image` (size, mean, standard
deviation).

**Plain PyTorch** (`factory:`) calls a function of your own code, which returns a module and a dict of example inputs.
`inputs` says by names which axes are dynamic (by default the first of every input, `batch`); the module has to run
with a batch of 1 and of 3, and with every other dynamic axis twice as long as the example's. *Building runs the code
in `code`*; loading the recipe does not. All Python files of `code` are part of the key, and so are `weights` and the
versions of `packages`. Random numbers are seeded with 0.

**Adopt** (`path:`) takes a finished ONNX file and needs no PyTorch. The file is checked, its weights must lie beside
it, and it is run once with made-up inputs. External data is found by its usual names (`<name>.data`, `<name>_data`,
`<stem>.data`, `<stem>.bin`, ...); name the folder instead when it has others, with one `.onnx` file in it.

The default exporter, `torchscript`, writes the graph that ONNX Runtime's fusions recognise whole, in a tenth of the
time of `dynamo`. All are reproducible byte for byte: the exported file has no path, time or version in it.

```yaml
targets:
  onnx:      {kind: onnx, from: checkpoint, task: feature-extraction}
  generator: {kind: onnx, from: gpt2, task: text-generation}
  own:
    kind: onnx
    factory: shop.ranking:make
    code: src
    weights: models/ranking.safetensors
    inputs: {items: [batch, candidates, 16], user: [batch, 32]}
    outputs: [score]
  adopted:   {kind: onnx, path: models/encoder.onnx, tokenizer: checkpoint}
```
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component, Descriptor
from modelbuild.errors import problem, suggestion
from modelbuild.kind import Anywhere, Context, Files, Ref, Siblings, Source, SpecError
from modelbuild.lib import own_code
from modelbuild.lib.checkpoint_files import EXTRAS, TOKENIZER
from modelbuild.lib.export_tasks import OPSETS, OTHER_NAMES, TASKS

if TYPE_CHECKING:
    from modelbuild.lib.export import Exported, Options

VERSION = 3
TOOLS = {
    "torch": "export",
    "transformers": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "onnx": "cpu",
    "onnxruntime": "cpu",
    "tokenizers": "cpu",
}
HARDWARE = ()
RESOURCES = ()

DEFAULT_TOLERANCE = 1e-4
BESIDE = Siblings(("{name}.data", "{name}_data", "{stem}.data", "{stem}.bin", "{stem}.weights"))
FOLDER = Files(("*.onnx", "*.data", "*.onnx_data", "*.bin", "*.weights", *TOKENIZER, *EXTRAS))
CODE = Files(("*.py", "**/*.py"))
EXPORT = {"task", "labels", "opset", "exporter", "tolerance"}
OPTIONS = {
    "from": EXPORT | {"use_cache"},
    "path": {"task", "labels", "tokenizer"},
    "factory": EXPORT | {"code", "weights", "inputs", "outputs", "packages", "tokenizer"},
}
"""Where the model comes from, and which other options go with that."""


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
    factory: Annotated[
        str | None, Meta(description="A function that makes a PyTorch module: `package.module:function`.")
    ] = None
    task: Annotated[
        str | None,
        Meta(description="The model's transformers task; by default, for an export, the checkpoint's own."),
    ] = None
    use_cache: Annotated[
        bool | None, Meta(description="For tasks that generate: with a key-value cache, which is the default.")
    ] = None
    labels: Annotated[
        tuple[str, ...] | None, Meta(description="Names of a classifier's outputs; by default the checkpoint's own.")
    ] = None
    code: (
        Annotated[Source, CODE, Meta(description="`factory`'s Python file, or the folder its package lies in.")] | None
    ) = None
    weights: (
        Annotated[Source, Anywhere(), Meta(description="A safetensors file with the weights of `factory`'s module.")]
        | None
    ) = None
    inputs: Annotated[
        dict[str, tuple[int | str, ...]] | None,
        Meta(description="Shapes of the module's inputs; a name in place of a size makes that axis dynamic."),
    ] = None
    outputs: Annotated[tuple[str, ...], Meta(description="Names of the module's outputs.")] = ()
    packages: Annotated[
        tuple[str, ...], Meta(description="Packages that `factory`'s code uses: their versions enter the key.")
    ] = ()
    tokenizer: (
        Annotated[Ref, Meta(description="Where the tokenizer and settings of a model without come from.")] | None
    ) = None
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
        origin = self._origin()
        for field in msgspec.structs.fields(type(self)):
            name = field.encode_name
            if name not in OPTIONS and name not in OPTIONS[origin] and getattr(self, field.name) != field.default:
                takers = " or ".join(f"`{o}`" for o, names in OPTIONS.items() if name in names)
                raise SpecError(f"`{name}` does not go with `{origin}`", field=name, hint=f"it goes with {takers}")
        if origin == "from":
            self._check_task()
        elif origin == "factory":
            self._check_factory()
        low, high = OPSETS[self.exporter]
        if self.opset is not None and not low <= self.opset <= high:
            raise SpecError(f"`{self.exporter}` exports opset {low} to {high}", field="opset")
        if not self.tolerance > 0:
            raise SpecError("`tolerance` must be positive", field="tolerance")

    def _origin(self) -> str:
        """Which of the three the model comes from."""
        given = [name for name in OPTIONS if getattr(self, "from_" if name == "from" else name) is not None]
        if len(given) != 1:
            said = " and ".join(f"`{g}`" for g in given)
            title = f"{said} exclude each other" if given else "says not what to export or adopt"
            hint = "give `from:` a checkpoint, `path:` an ONNX file to adopt, or `factory:` a function of your own"
            raise SpecError(title, field=given[1] if given else None, hint=hint)
        return given[0]

    def _check_task(self) -> None:
        if self.task is None:
            return
        if self.task not in TASKS:
            other = OTHER_NAMES.get(self.task.lower())
            hint = f"it is called `{other}`" if other else suggestion(self.task, TASKS)
            title = f"the task `{self.task}` cannot be exported"
            raise SpecError(title, field="task", hint=hint or f"supported: {', '.join(TASKS)}")
        if self.use_cache is not None and not TASKS[self.task].generates:
            raise SpecError(f"`{self.task}` has no key-value cache", field="use_cache")
        if self.labels is not None and not TASKS[self.task].labels:
            raise SpecError(f"`{self.task}` has no labels", field="labels")

    def _check_factory(self) -> None:
        if not own_code.NAME.fullmatch(self.factory or ""):
            raise SpecError(f"`{self.factory}` is not `package.module:function`", field="factory")
        if self.code is None:
            hint = "name the Python file, or the folder its package lies in: its content enters the key"
            raise SpecError("`factory` needs `code`", field="factory", hint=hint)


def tools(spec: Spec) -> Collection[str]:
    """Adopting needs no PyTorch, a factory no transformers; onnxscript is dynamo's."""
    used = {"onnx", "onnxruntime", "tokenizers"}
    if spec.path is not None:
        return used
    used |= {"torch"} | ({"onnxscript"} if spec.exporter == "dynamo" else set())
    if spec.factory is None:
        return used | {"transformers"}
    return used | ({"safetensors"} if spec.weights else set()) | set(spec.packages)


def build(spec: Spec, ctx: Context) -> None:
    if spec.path is not None:
        _adopt(spec, ctx)
    elif spec.factory is not None:
        _export_module(spec, ctx)
    else:
        _export(spec, ctx)


def _export(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import architectures, export

    source = ctx.input("from")
    described = source.descriptor
    if described.format != "safetensors":
        raise problem(
            "only a checkpoint can be exported",
            format=described.format,
            hint="`from:` takes a target of kind `checkpoint`; `path:` adopts an ONNX file",
        )
    task = spec.task or architectures.task_of(described.settings)
    if spec.use_cache is not None and not TASKS[task].generates:
        raise problem(f"`{task}` has no key-value cache", hint="leave out `use_cache`")
    labels = _labels(spec, described, task)
    _require_fit(source, described.settings.get("vocab_size"))
    done = export.checkpoint(
        source.path,
        ctx.out,
        model_type=described.settings["model_type"],
        task=task,
        use_cache=spec.use_cache is not False,
        options=_options(spec),
        progress=ctx.progress,
    )
    _require_labels(labels, done.components)
    _say(done, "checkpoint", ctx)
    _carry(source, ctx)
    settings = {k: v for k, v in described.settings.items() if k != "labels"}
    ctx.describe(
        Descriptor(
            format="onnx",
            task=task,
            precision="fp32",
            components=done.components,
            tokenizer=described.tokenizer,
            extras=described.extras,
            settings=settings | ({"labels": labels} if labels else {}),
            metrics={k: v for k, v in described.metrics.items() if k == "parameters"},
        )
    )


def _export_module(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import export, export_factory, lean_torch

    torch = lean_torch.import_torch()
    torch.manual_seed(0)
    assert spec.factory is not None
    ctx.progress(0, 4, f"run {spec.factory}")
    module, examples = export_factory.load(ctx.sources["code"], spec.factory)
    if "weights" in ctx.sources:
        export_factory.put_weights(module, ctx.sources["weights"])
    count = sum(p.numel() for p in module.parameters())
    graphs = [export_factory.graph(torch, module, examples, spec.inputs or {}, spec.outputs)]
    del module
    done = export.export(torch, graphs, ctx.out, _options(spec), ctx.progress)
    _say(done, "module", ctx)
    carried = _companion(ctx, None)
    ctx.describe(
        msgspec.structs.replace(
            carried,
            task=spec.task,
            precision="fp32",
            components=done.components,
            settings=carried.settings | _given_labels(spec, done.components),
            metrics={"parameters": float(count)},
        )
    )


def _options(spec: Spec) -> Options:
    from modelbuild.lib.export import Options

    return Options(spec.exporter, spec.opset, spec.tolerance)


def _say(done: Exported, source: str, ctx: Context) -> None:
    ctx.log(f"equal to the {source} within {done.difference:.1e} of the outputs' largest value at {done.checked}")
    ctx.metric("difference", done.difference)


def _labels(spec: Spec, described: Descriptor, task: str) -> list[str]:
    """The names of a classifier's outputs, the recipe's before the checkpoint's; empty for a task without."""
    if not TASKS[task].labels:
        if spec.labels is not None:
            raise problem(f"`{task}` has no labels", hint="leave out `labels`")
        return []
    labels = spec.labels if spec.labels is not None else described.settings.get("labels")
    if not labels:
        raise problem(
            "the checkpoint does not name its labels",
            architecture=described.settings.get("architecture", "none"),
            hint="say `labels: [...]` here, or write `id2label` into the checkpoint's `config.json`",
        )
    return list(labels)


def _require_labels(labels: Collection[str], components: dict[str, Component]) -> None:
    """A `ProblemError` unless there are as many labels as the last axis of the logits is long."""
    logits = next(t for c in components.values() for t in c.outputs)
    if labels and logits.shape[-1] != len(labels):
        raise problem(
            f"{len(labels)} labels are given for {logits.shape[-1]} outputs",
            labels=", ".join(list(labels)[:20]),
            hint="give one label for each output, in order",
        )


def _given_labels(spec: Spec, components: dict[str, Component]) -> dict[str, list[str]]:
    if spec.labels is None:
        return {}
    _require_labels(spec.labels, components)
    return {"labels": list(spec.labels)}


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
    carried = _companion(ctx, found.rows, path)
    settings = carried.settings | ({"vocab_size": found.rows} if found.rows else {})
    settings |= _given_labels(spec, {"model": found.component})
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


def _companion(ctx: Context, rows: int | None, path: Path | None = None) -> Descriptor:
    """Tokenizer, extras and settings that travel with a model, put in place: the named target's, else those
    that lie in the adopted folder."""
    if ctx.inputs.get("tokenizer"):
        source = ctx.input("tokenizer")
        _require_fit(source, rows)
        _carry(source, ctx)
        given = source.descriptor
        return Descriptor(format="onnx", tokenizer=given.tokenizer, extras=given.extras, settings=given.settings)
    if path is None or not ctx.sources["path"].is_dir():
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
