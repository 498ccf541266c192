"""Texts or tensors as model inputs, for calibration and for verification.

Texts come as `jsonl` (one object per line), `csv` (with a header), or `txt` (one text per line), are tokenized by the
tokenizer of the artifact that `tokenizer` names (usually the checkpoint), and kept without padding: whoever uses the
dataset pads batch by batch, so padding costs neither space nor accuracy. With two `columns` the texts are encoded as
pairs. Rows whose text is blank are left out, and how many is said.

Tensors come as `npz`: each array is a model input by its name, its first axis the samples.

`label` keeps what each sample should be answered with, for the scores of `verified`: a class, a number, a text, the
answers to a question (a text, a list of texts, or `{text: [...]}`), or a class for each word. Words are the column's
own where it holds a list of them, else what white space parts. Of an `npz` file the label is an array, too.

`limit` takes the first rows; with `seed`, rows drawn at random. Memory does not grow with the number of rows.

```yaml
targets:
  sentences: {kind: dataset, path: data/sentences.jsonl, tokenizer: checkpoint, max_length: 128, limit: 256, seed: 1}
  pairs:     {kind: dataset, path: data/nli.csv, tokenizer: checkpoint, columns: [premise, hypothesis], label: label}
  questions: {kind: dataset, path: data/qa.jsonl, tokenizer: checkpoint, columns: [question, context], label: answers}
  entities:  {kind: dataset, path: data/ner.jsonl, tokenizer: checkpoint, columns: tokens, label: tags}
  images:    {kind: dataset, path: /data/images.npz, label: classes}
```
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Component, Descriptor, Tensor
from modelbuild.errors import problem, suggestion
from modelbuild.kind import Anywhere, Context, Ref, Source, SpecError

if TYPE_CHECKING:
    from modelbuild.lib.tokenizing import Tokenizer

VERSION = 2
TOOLS = {"tokenizers": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "txt", ".npz": "npz"}
DEFAULT_MAX_LENGTH = 512
"""For a tokenizer whose artifact states no length at all."""


class Spec(kind.Spec, frozen=True, kw_only=True):
    path: Annotated[Source, Anywhere(), Meta(description="The file of texts or tensors.")]
    format: Annotated[
        Literal["jsonl", "csv", "txt", "npz"] | None, Meta(description="The file's format; by default its suffix's.")
    ] = None
    tokenizer: Annotated[Ref, Meta(description="The target whose tokenizer encodes the texts.")] | None = None
    columns: Annotated[
        str | list[str] | None,
        Meta(description="The column to take, or two for pairs; by default `text`, `sentence` or the only one."),
    ] = None
    label: Annotated[
        str | None, Meta(description="The column (of `npz`: the array) to keep beside each sample as its label.")
    ] = None
    max_length: Annotated[
        int | None, Meta(description="Longest sample in tokens, the rest is cut; by default the model's own limit.")
    ] = None
    padding: Annotated[
        Literal["none", "max_length"],
        Meta(description="`none`: each batch is padded to its longest sample; `max_length`: all to that many tokens."),
    ] = "none"
    limit: Annotated[int | None, Meta(description="How many samples to take at most.")] = None
    seed: Annotated[int | None, Meta(description="Shuffle the samples, before the limit, by this seed.")] = None

    def __post_init__(self) -> None:
        if self.format is None and PurePath(self.path).suffix not in FORMATS:
            raise SpecError(
                f"the format of `{self.path}` is not known by its suffix",
                field="path",
                hint=f"say `format:` ({', '.join(sorted(set(FORMATS.values())))})",
            )
        for field in ("max_length", "limit"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise SpecError(f"`{field}` must be at least 1", field=field)
        if self.seed is not None and self.seed < 0:
            raise SpecError("`seed` must not be negative", field="seed")
        if not 1 <= len(self.column_names or ("",)) <= 2 or self.columns == []:
            raise SpecError("`columns` takes one column, or two for pairs", field="columns")
        if self.format_name != "npz":
            if self.tokenizer is None:
                hint = "name the target that has it, such as the checkpoint"
                raise SpecError("texts need a `tokenizer`", field="path", hint=hint)
            return
        for field in ("tokenizer", "columns", "max_length"):
            if getattr(self, field) is not None:
                raise SpecError(f"`{field}` is for texts, and `{self.path}` holds tensors", field=field)
        if self.padding != "none":
            raise SpecError(f"`padding` is for texts, and `{self.path}` holds tensors", field="padding")

    @property
    def format_name(self) -> str:
        """The format as given or told by the suffix."""
        return self.format or FORMATS[PurePath(self.path).suffix]

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns as a tuple; empty for the default."""
        return (self.columns,) if isinstance(self.columns, str) else tuple(self.columns or ())


def tools(spec: Spec) -> Collection[str]:
    """Tensors need no tokenizer."""
    return {"numpy"} if spec.format_name == "npz" else TOOLS.keys()


def build(spec: Spec, ctx: Context) -> None:
    path = ctx.sources["path"]
    if not path.is_file():
        raise problem(f"`{spec.path}` is not a file", path=path, hint="name one file of texts or tensors")
    if spec.format_name == "npz":
        _tensors(spec, ctx)
    else:
        _texts(spec, ctx)


def _texts(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import rows, samples, texts, tokenizing

    artifact = ctx.input("tokenizer")
    tokenizer = tokenizing.Tokenizer(artifact)
    file = rows.TextFile(
        ctx.sources["path"], spec.path, rows.SUFFIXES[f".{spec.format_name}"], spec.column_names, spec.label
    )
    max_length = _max_length(spec, artifact.descriptor.settings, tokenizer, ctx)
    tokenizer.truncate(max_length)
    padding = tokenizer.padding
    if not padding.found:
        ctx.log("the tokenizer has no padding token: padding is token 0, masked")
    pairs = len(spec.column_names) == 2
    header = samples.Header(
        count=0,
        pairs=pairs,
        pad_id=padding.token_id,
        pad_type_id=padding.type_id,
        pad_left=padding.left,
        pad_to=max_length if spec.padding == "max_length" else None,
        places=spec.label is not None,
    )
    progress = ctx.progress
    chosen = texts.draw(file, spec.seed, spec.limit, progress) if spec.seed is not None else None
    limit = None if chosen is not None else spec.limit
    tally = texts.Tally()
    encoded = texts.encode(file, tokenizer, tally, progress, chosen=chosen, limit=limit)
    order = None if chosen is None else texts.places(chosen)
    written = samples.write_texts(ctx.out, encoded, header, order)
    if not written.count:
        hint = "is it the right file and column?"
        raise problem(f"`{spec.path}` holds no texts", blank_rows=tally.blank, hint=hint)
    if spec.label is not None:
        places = range(written.count) if order is None else order
        labels, kept = [tally.labels[i] for i in places], [tally.texts[i] for i in places]
        written = samples.write_labels(ctx.out, labels, written, kept)
    _say(spec, ctx, written.count, tally.blank)
    mean = written.tokens / written.count
    cut = f", {tally.cut} cut to {max_length}" if tally.cut else ""
    ctx.log(f"{written.count} samples, {mean:.1f} tokens on average, {written.longest} the longest{cut}")
    tensors = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in samples.TEXT_INPUTS)
    _describe(
        ctx,
        tensors,
        {
            "samples": written.count,
            "max_length": max_length,
            "longest": written.longest,
            "vocab_size": tokenizer.vocab_size,
            "vocabulary": tokenizer.vocabulary,
            "largest_id": tally.largest,
            "pad_id": padding.token_id,
        },
        {"samples": float(written.count), "tokens": float(written.tokens), "cut": float(tally.cut)},
    )


def _max_length(spec: Spec, settings: dict[str, Any], tokenizer: Tokenizer, ctx: Context) -> int:
    """Tokens per sample: the recipe's, else the model's own, checked against both ends."""
    positions = settings.get("max_positions")
    length = spec.max_length or settings.get("max_length") or positions
    if length is None:
        length = DEFAULT_MAX_LENGTH
        ctx.log(f"the model states no longest length: texts are cut to {length} tokens")
    if positions is not None and length > positions:
        raise problem(
            f"`max_length: {length}` is more than the model takes",
            model=f"{positions} tokens",
            hint=f"at most {positions}",
        )
    least = 1 + tokenizer.special_tokens(pair=len(spec.column_names) == 2)
    if length < least:
        raise problem(f"`max_length: {length}` leaves no room for text", least=f"{least} tokens")
    return int(length)


def _tensors(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import npz, samples, texts

    count, files = npz.unpack(ctx.sources["path"], spec.path, ctx.scratch)
    if not count:
        raise problem(f"`{spec.path}` holds no samples", arrays=", ".join(files) or "none")
    chosen: Sequence[int] | None = None
    if spec.seed is not None:
        chosen = texts.shuffled(count, spec.seed, spec.limit)
    elif spec.limit is not None and spec.limit < count:
        chosen = range(spec.limit)
    taken = count if chosen is None else len(chosen)
    labels = _labels(spec, files, range(count) if chosen is None else chosen)
    names = {}
    for i, (name, file) in enumerate(sorted(files.items())):
        names[name] = f"array_{i}.npy"
        npz.take(file, ctx.out / names[name], chosen)
        ctx.progress(i + 1, len(files), "copy arrays")
    header = samples.write_arrays(ctx.out, taken, names)
    if labels is not None:
        samples.write_labels(ctx.out, labels, header)
    _say(spec, ctx, taken, 0)
    opened = samples.Samples(ctx.out)
    tensors = tuple(Tensor(name, a.dtype.name, ("batch", *a.shape[1:])) for name, a in opened.arrays.items())
    ctx.log(f"{taken} samples of " + ", ".join(f"`{t.name}` {t.dtype} {list(t.shape[1:])}" for t in tensors))
    _describe(ctx, tensors, {"samples": taken}, {"samples": float(taken)})


def _labels(spec: Spec, files: dict[str, Path], chosen: Sequence[int]) -> list[Any] | None:
    """The label of each chosen sample; its array is taken out of `files`."""
    import numpy as np

    if spec.label is None:
        return None
    file = files.pop(spec.label, None)
    if file is None:
        hint = suggestion(spec.label, files)
        raise problem(f"`{spec.path}` has no array `{spec.label}`", arrays=", ".join(files) or "none", hint=hint)
    if not files:
        raise problem(f"`{spec.path}` has labels and nothing that they are of", arrays=spec.label)
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biufU":
        raise problem(f"the labels `{spec.label}` are neither numbers nor texts", dtype=array.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise problem(f"the labels `{spec.label}` are not all finite")
    return [array[i].tolist() for i in chosen]


def _say(spec: Spec, ctx: Context, count: int, blank: int) -> None:
    if blank:
        ctx.log(f"left out {blank} blank {'row' if blank == 1 else 'rows'}")
    if spec.limit is not None and count < spec.limit:
        ctx.log(f"`limit: {spec.limit}` is more than there is: {count} samples")


def _describe(ctx: Context, tensors: tuple[Tensor, ...], settings: dict[str, Any], metrics: dict[str, float]) -> None:
    component = Component("samples.json", outputs=tensors)
    ctx.describe(Descriptor(format="dataset", components={"samples": component}, settings=settings, metrics=metrics))
