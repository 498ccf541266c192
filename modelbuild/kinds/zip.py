"""A package to hand over: one reproducible zip with the model and all that running it needs.

```yaml
bundle: {kind: zip, from: int8}
both:   {kind: zip, from: [int8, fused]}
```

`model.zip` holds

- `model/`: the input as it is, with its tokenizer and descriptor. Several inputs stand in folders named after their
  formats instead (`onnx/`, `onnx-2/`, ...): never after targets, so renaming one rebuilds nothing;
- `settings.json`: what each model expects and gives (names, dtypes, shapes), its tokenizer, pooling, normalisation and
  length limit, and the ONNX Runtime session options; `sample.py` reads it, and so can a service;
- `requirements.txt`: the versions that the package was made with;
- `sample.py`: runs the first ONNX model: `python sample.py "some text"`, or `--npz inputs.npz`;
- `history.json`: how every stage above was made: kinds, options, tool versions and digests, inputs first;
- `SHA256SUMS`: of every other file; `sha256sum -c SHA256SUMS` checks them.

The same inputs give the same bytes on every machine: entries are sorted and stored without compression (deflate's
bytes differ between zlib builds, and it takes 7 % off float weights at forty times the CPU time), with the date 1980
and modes 0644 or 0755. Files over 4 GiB use ZIP64. Weights are read once; their sums are taken on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from modelbuild import kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Context, Lineage, Ref

VERSION = 2
TOOLS = {"numpy": "cpu", "onnxruntime": "cpu", "tokenizers": "cpu"}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()

PACKAGE = "model.zip"
FLAVOURS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Annotated[Ref | Annotated[list[Ref], msgspec.Meta(min_length=1)], Lineage()]
    """What goes into the package: a target, or a list of them."""


def build(spec: Spec, ctx: Context) -> None:
    from importlib import resources

    from modelbuild.lib import archive

    artifacts = ctx.inputs["from"]
    folders = _folders(artifacts)
    entries = [e for folder, a in zip(folders, artifacts, strict=True) for e in archive.entries(folder, a.path)]
    settings = _settings(folders, artifacts)
    texts = {"history.json": _json({"stages": ctx.history("from")}), "settings.json": _json(settings)}
    if settings["models"]:
        texts["requirements.txt"] = _requirements(settings).encode()
        texts["sample.py"] = resources.files("modelbuild.lib").joinpath("zip_sample.py").read_bytes()
    sums = archive.write(ctx.out / PACKAGE, texts, entries, lambda done, total: ctx.progress(done, total, "zip"))
    ctx.log(f"packed {len(sums)} files, {(ctx.out / PACKAGE).stat().st_size / 1e6:.1f} MB")
    first = artifacts[0].descriptor
    ctx.describe(
        Descriptor(
            format="zip",
            task=first.task,
            precision=first.precision,
            extras=(PACKAGE,),
            settings=first.settings,
            metrics=first.metrics,
        )
    )


def _folders(artifacts: Sequence[Artifact]) -> list[str]:
    """The folder of each input: `model`, or the formats with a number where two are the same."""
    if len(artifacts) == 1:
        return ["model"]
    found: list[str] = []
    for a in artifacts:
        word = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in a.descriptor.format) or "model"
        name, count = word, 1
        while name in found:
            count += 1
            name = f"{word}-{count}"
        found.append(name)
    return found


def _settings(folders: Sequence[str], artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """What is needed to run each model. A model without a tokenizer of its own takes that of another input."""
    pairs = list(zip(folders, artifacts, strict=True))
    lent = next(([f"{f}/{t}" for t in a.descriptor.tokenizer] for f, a in pairs if a.descriptor.tokenizer), [])
    models = []
    for folder, a in pairs:
        d = a.descriptor
        if d.format != "onnx":
            continue
        own = [f"{folder}/{t}" for t in d.tokenizer]
        components = {
            name: {"file": f"{folder}/{c.file}", "inputs": c.inputs, "outputs": c.outputs}
            for name, c in d.components.items()
        }
        model = {"folder": folder, "task": d.task, "precision": d.precision, "components": components}
        models.append({**model, "tokenizer": own or lent, "settings": d.settings})
    runtime = {
        "providers": ["CPUExecutionProvider"],
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "execution_mode": "ORT_SEQUENTIAL",
        "intra_op_num_threads": 0,
        "inter_op_num_threads": 0,
    }
    return {"models": models, "runtime": runtime} if models else {"models": []}


def _requirements(settings: dict[str, Any]) -> str:
    needed = ["numpy", "onnxruntime"]
    if any(model["tokenizer"] for model in settings["models"]):
        needed.append("tokenizers")
    return "".join(f"{_pinned(name)}\n" for name in needed)


def _pinned(name: str) -> str:
    """The requirement, on the CPU build of ONNX Runtime whichever flavour is installed here."""
    from importlib import metadata

    for flavour in FLAVOURS.get(name, (name,)):
        try:
            return f"{name}=={metadata.version(flavour)}"
        except metadata.PackageNotFoundError:
            continue
    hint = f"pip install 'modelbuild[{TOOLS[name]}]'"
    raise problem(f"the package `{name}` is not installed, so its version cannot be pinned", hint=hint)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
