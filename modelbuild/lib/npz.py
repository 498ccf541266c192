"""Tensors of an npz file, one `.npy` file per array, none of them held in memory whole."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from modelbuild.errors import problem

CHUNK = 256
"""Samples copied at a time when some are selected."""


def unpack(source: Path, name: str, folder: Path) -> tuple[int, dict[str, Path]]:
    """Write each array of the npz file `source` (called `name` in messages) to a `.npy` file in `folder`.

    Returns the samples per array (the length of the first axis, the same for all) and the files by array name. A
    `ProblemError` for a file that is no npz, holds pickled (object) arrays or arrays of different lengths.
    """
    import numpy as np

    files: dict[str, Path] = {}
    lengths: dict[str, int] = {}
    try:
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            for i, member in enumerate(members):
                target = folder / f"{i}.npy"
                with archive.open(member) as reader, target.open("wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                files[member.filename.removesuffix(".npy")] = target
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as e:
        raise problem(f"`{name}` is not a readable npz file", cause=e, hint="write it with `numpy.savez`") from None
    for key, file in files.items():
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as e:
            pickled = "Object arrays" in str(e) or "Python objects" in str(e)
            raise problem(
                f"the array `{key}` of `{name}` holds Python objects, which are never unpickled"
                if pickled
                else f"the array `{key}` of `{name}` is corrupt",
                cause=e,
                hint="save arrays of numbers, with one shape for all samples" if pickled else None,
            ) from None
        if array.ndim == 0:
            raise problem(f"the array `{key}` of `{name}` has no axis", hint="the first axis is the samples")
        lengths[key] = array.shape[0]
    if len(set(lengths.values())) > 1:
        raise problem(
            f"the arrays of `{name}` differ in their number of samples",
            samples=", ".join(f"`{k}` {n}" for k, n in lengths.items()),
            hint="the first axis of every array is the samples",
        )
    return (next(iter(lengths.values())) if lengths else 0), files


def take(source: Path, target: Path, samples: Sequence[int] | None) -> None:
    """Move the array in `source` to `target`, or write only the given samples of it, in their order."""
    import numpy as np

    if samples is None:
        source.rename(target)
        return
    array = np.load(source, mmap_mode="r", allow_pickle=False)
    shape = (len(samples), *array.shape[1:])
    chosen = np.lib.format.open_memmap(target, mode="w+", dtype=array.dtype, shape=shape)
    for first in range(0, len(samples), CHUNK):
        chosen[first : first + CHUNK] = array[np.asarray(samples[first : first + CHUNK])]
    chosen.flush()
