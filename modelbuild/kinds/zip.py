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

import hashlib
import stat
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any

import msgspec

from modelbuild import kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Context, Lineage, Ref

VERSION = 1
TOOLS = {"numpy": "cpu", "onnxruntime": "cpu", "tokenizers": "cpu"}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()

PACKAGE = "model.zip"
BLOCK = 4 << 20
"""Bytes read at once."""
DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that zip can hold."""
FLAVOURS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Annotated[Ref | Annotated[list[Ref], msgspec.Meta(min_length=1)], Lineage()]
    """What goes into the package: a target, or a list of them."""


class Entry(msgspec.Struct, frozen=True):
    """A file of an input, or a folder that is empty (`size` None), and its name in the package."""

    name: str
    path: Path
    size: int | None
    executable: bool = False


def build(spec: Spec, ctx: Context) -> None:
    artifacts = ctx.inputs["from"]
    folders = _folders(artifacts)
    entries = [e for folder, a in zip(folders, artifacts, strict=True) for e in _entries(folder, a.path)]
    settings = _settings(folders, artifacts)
    texts = {
        "history.json": _json({"stages": ctx.history("from")}),
        "settings.json": _json(settings),
    }
    if settings["models"]:
        texts["requirements.txt"] = _requirements(settings).encode()
        texts["sample.py"] = resources.files("modelbuild.lib").joinpath("zip_sample.py").read_bytes()
    total = sum(e.size or 0 for e in entries)
    done = 0
    with zipfile.ZipFile(ctx.out / PACKAGE, "w", zipfile.ZIP_STORED) as package:
        sums = {name: _write_text(package, name, text) for name, text in sorted(texts.items())}
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.size is None:
                package.writestr(_info(entry.name, stat.S_IFDIR | 0o755), b"")
                continue
            hashed = hashlib.sha256()
            for block in _copied(package, entry):
                hashed.update(block)
                done += len(block)
                ctx.progress(done, total, "zip")
            sums[entry.name] = hashed.hexdigest()
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        _write_text(package, "SHA256SUMS", lines.encode())
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


def _entries(folder: str, root: Path) -> Iterator[Entry]:
    """The files below `root`, and the folders with nothing in them, which zips and git else lose.

    A symlink or a special file is a `ProblemError`: it could bring in what is not part of the artifact.
    """
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        relative = path.relative_to(root).as_posix()
        name = f"{folder}/{relative}"
        if "\\" in name or not name.isprintable():
            raise problem("the input has a file name that some systems cannot unpack", file=ascii(relative))
        if stat.S_ISDIR(mode):
            if not any(path.iterdir()):
                yield Entry(f"{name}/", path, None)
        elif stat.S_ISREG(mode):
            yield Entry(name, path, path.stat().st_size, bool(mode & stat.S_IXUSR))
        else:
            what = "a symlink" if stat.S_ISLNK(mode) else "a special file"
            raise problem(f"the input holds {what}, which cannot be packed", file=relative)


def _info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, DATE)
    info.create_system = 3
    info.external_attr = mode << 16
    if stat.S_ISDIR(mode):
        info.external_attr |= 0x10
    return info


def _write_text(package: zipfile.ZipFile, name: str, text: bytes) -> str:
    package.writestr(_info(name, stat.S_IFREG | 0o644), text)
    return hashlib.sha256(text).hexdigest()


def _copied(package: zipfile.ZipFile, entry: Entry) -> Iterator[memoryview]:
    """Write the file to the package and give its blocks, each valid until the next."""
    info = _info(entry.name, stat.S_IFREG | (0o755 if entry.executable else 0o644))
    info.file_size = entry.size or 0
    buffer = memoryview(bytearray(BLOCK))
    copied = 0
    with entry.path.open("rb", buffering=0) as source, package.open(info, "w") as target:
        while count := source.readinto(buffer):
            copied += count
            if copied > info.file_size + BLOCK:
                break
            target.write(buffer[:count])
            yield buffer[:count]
    if copied != entry.size:
        raise problem("a file changed while it was packed", file=entry.name, expected=entry.size, read=copied)


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
    for flavour in FLAVOURS.get(name, (name,)):
        try:
            return f"{flavour}=={metadata.version(flavour)}"
        except metadata.PackageNotFoundError:
            continue
    hint = f"pip install 'modelbuild[{TOOLS[name]}]'"
    raise problem(f"the package `{name}` is not installed, so its version cannot be pinned", hint=hint)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
