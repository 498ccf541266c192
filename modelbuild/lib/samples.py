"""Samples as model inputs on disk: token ids in one flat file, or one array per input; read batch by batch.

A folder of samples holds `samples.json` (a `Header`) and little-endian files it names. Texts are kept ragged, without
padding: `tokens.bin` is every sample's token ids one after another (int32), `types.bin` their segment ids (uint8, for
pairs), `spans.bin` the samples' [start, end) in tokens (int64), in the samples' order. Tensors are `.npy` files whose
first axis is the samples. All are memory-mapped: memory does not grow with the number of samples.

Labelled samples have `labels.json`, a value each, and where they are texts what scores need to find an answer in them:
`texts.json`, and `places.bin`, each token's text (-1: added by the tokenizer) and [start, end) in characters (int32).
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from modelbuild.artifact import Artifact
from modelbuild.errors import problem, suggestion

if TYPE_CHECKING:
    import numpy as np

HEADER = "samples.json"
TOKENS, TYPES, SPANS, LABELS = "tokens.bin", "types.bin", "spans.bin", "labels.json"
PLACES, TEXTS = "places.bin", "texts.json"
Text: TypeAlias = Sequence[str | Sequence[str]]
"""The texts of a sample, one or two; one that came as a list of words is that list."""
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a folder of samples holds. Exactly one of `tokens` (texts) and `arrays` (tensors) is filled."""

    count: int
    tokens: int = 0
    longest: int = 0
    """Tokens of the longest sample."""
    pairs: bool = False
    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False
    pad_to: int | None = None
    """Every batch is padded to this many tokens; else to its longest sample."""
    arrays: dict[str, str] = {}
    """Input name -> file."""
    labels: bool = False
    places: bool = False


class Encoded(msgspec.Struct, frozen=True):
    """One sample: its token ids, segment ids when it is a pair of texts, and places when it is to be labelled."""

    ids: Sequence[int]
    types: Sequence[int] | None = None
    places: Sequence[tuple[int, int, int]] | None = None


def write_texts(folder: Path, samples: Iterable[Encoded], header: Header, order: Sequence[int] | None = None) -> Header:
    """Write samples as they come; `header` gives the padding. `order[i]` is the place in `samples` of sample i.

    Returns the header as written, with the figures filled in.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    ends = array.array("q", [0])
    with (
        (folder / TOKENS).open("wb") as tokens,
        (folder / TYPES).open("wb") as types,
        (folder / PLACES).open("wb") as places,
    ):
        for sample in samples:
            tokens.write(np.asarray(sample.ids, dtype="<i4").tobytes())
            if header.pairs:
                types.write(np.asarray(sample.types, dtype="u1").tobytes())
            if header.places:
                places.write(np.asarray(sample.places, dtype="<i4").tobytes())
            ends.append(ends[-1] + len(sample.ids))
    if not header.pairs:
        (folder / TYPES).unlink()
    if not header.places:
        (folder / PLACES).unlink()
    spans = np.stack([np.asarray(ends[:-1], dtype="<i8"), np.asarray(ends[1:], dtype="<i8")], axis=1)
    if order is not None:
        spans = spans[np.asarray(order, dtype=np.int64)]
    spans.tofile(folder / SPANS)
    longest = int((spans[:, 1] - spans[:, 0]).max(initial=0))
    filled = msgspec.structs.replace(header, count=len(spans), tokens=ends[-1], longest=longest)
    _write_header(folder, filled)
    return filled


def write_arrays(folder: Path, count: int, arrays: Mapping[str, str]) -> Header:
    """Write the header of a folder in which `arrays` (input name -> `.npy` file) lie, `count` samples each."""
    header = Header(count=count, arrays=dict(arrays))
    _write_header(folder, header)
    return header


def write_labels(folder: Path, labels: Sequence[Any], header: Header, texts: Sequence[Text] = ()) -> Header:
    """Write one JSON value per sample beside the samples, and the texts of samples that have some."""
    (folder / LABELS).write_bytes(msgspec.json.encode(list(labels)) + b"\n")
    if header.places:
        (folder / TEXTS).write_bytes(msgspec.json.encode(list(texts)) + b"\n")
    header = msgspec.structs.replace(header, labels=True)
    _write_header(folder, header)
    return header


def _write_header(folder: Path, header: Header) -> None:
    text = msgspec.json.format(msgspec.json.encode(header, order="sorted"), indent=2)
    (folder / HEADER).write_bytes(text + b"\n")


class Samples:
    """Samples of a folder, in order. `len()` is their number."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.folder = folder
        self.header = msgspec.json.decode((folder / HEADER).read_bytes(), type=Header)
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            name: np.load(folder / file, mmap_mode="r", allow_pickle=False) for name, file in self.header.arrays.items()
        }
        if not self.arrays:
            self._tokens = np.memmap(folder / TOKENS, dtype="<i4", mode="r")
            self._types = np.memmap(folder / TYPES, dtype="u1", mode="r") if self.header.pairs else None
            self._spans = np.memmap(folder / SPANS, dtype="<i8", mode="r").reshape(-1, 2)
            self._places = (
                np.memmap(folder / PLACES, dtype="<i4", mode="r").reshape(-1, 3) if self.header.places else None
            )

    def __len__(self) -> int:
        return self.header.count

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs the samples can give: a graph takes those it needs."""
        return tuple(self.arrays) or TEXT_INPUTS

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens per sample, int64 [samples]; all 1 for tensors."""
        import numpy as np

        if self.arrays:
            return np.ones(len(self), dtype=np.int64)
        return np.asarray(self._spans[:, 1] - self._spans[:, 0])

    def labels(self) -> list[Any] | None:
        """One JSON value per sample, where the dataset was built with a label column."""
        return msgspec.json.decode((self.folder / LABELS).read_bytes()) if self.header.labels else None

    def texts(self) -> list[Text] | None:
        """The texts of each sample, where they were labelled."""
        return msgspec.json.decode((self.folder / TEXTS).read_bytes()) if self.header.places else None

    def places(self, sample: int) -> np.ndarray[Any, Any]:
        """For each token of a labelled text: the number of its text (-1: none), and its start and end, [tokens, 3]."""
        assert self._places is not None
        start, end = self._spans[sample]
        return self._places[start:end]

    def require(self, names: Iterable[str]) -> None:
        """A `ProblemError` naming the first of `names` that the samples do not have."""
        for name in names:
            if name not in self.inputs:
                raise problem(
                    f"the dataset has no input `{name}`",
                    has=", ".join(self.inputs),
                    hint=suggestion(name, self.inputs),
                )

    def batches(
        self,
        size: int,
        pad: int | None = None,
        sort_by_length: bool = False,
        names: Sequence[str] | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Batches of at most `size` samples: input name -> array [batch, sequence] (texts: int64) or [batch, ...].

        Texts are padded to `pad` tokens (longer ones are cut), else to what the dataset asks for, else to the batch's
        longest; padding has attention mask 0. `sort_by_length` puts samples of like length together, short ones
        first, which saves most of the padding. `names` chooses inputs; `dtypes` casts them (input name -> dtype).
        """
        import numpy as np

        wanted = tuple(names) if names is not None else self.inputs
        self.require(wanted)
        order = np.argsort(self.lengths, kind="stable") if sort_by_length else np.arange(len(self))
        for first in range(0, len(self), size):
            chosen = order[first : first + size]
            whole = self._arrays_of(chosen, wanted) if self.arrays else self._texts_of(chosen, pad)
            yield {n: whole[n].astype((dtypes or {}).get(n, whole[n].dtype), copy=False) for n in wanted}

    def _arrays_of(self, chosen: np.ndarray[Any, Any], wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        return {name: np.ascontiguousarray(self.arrays[name][chosen]) for name in wanted}

    def _texts_of(self, chosen: np.ndarray[Any, Any], pad: int | None) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        spans = self._spans[chosen]
        longest = int((spans[:, 1] - spans[:, 0]).max())
        width = pad or self.header.pad_to or longest
        ids = np.full((len(chosen), width), self.header.pad_id, dtype=np.int64)
        types = np.full((len(chosen), width), self.header.pad_type_id, dtype=np.int64)
        mask = np.zeros((len(chosen), width), dtype=np.int64)
        for row, (start, end) in enumerate(spans):
            end = min(end, start + width)
            place = slice(width - (end - start), width) if self.header.pad_left else slice(0, end - start)
            ids[row, place] = self._tokens[start:end]
            types[row, place] = 0 if self._types is None else self._types[start:end]
            mask[row, place] = 1
        return dict(zip(TEXT_INPUTS, (ids, mask, types), strict=True))


def of(artifact: Artifact) -> Samples:
    """The samples of a dataset artifact; a `ProblemError` for any other."""
    if artifact.descriptor.format != "dataset":
        raise problem(
            "the input is not a dataset", format=artifact.descriptor.format, hint="name a target of kind `dataset`"
        )
    return Samples(artifact.path)
