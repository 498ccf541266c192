"""A zip archive with the same bytes for the same files, written in one pass that also makes their SHA-256 sums.

Everything is stored: weights hardly shrink, and deflated bytes differ between builds of zlib.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from modelbuild.errors import problem

BLOCK = 4 << 20
"""Bytes read at once."""
DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that zip can hold."""
SUMS = "SHA256SUMS"


class Entry(msgspec.Struct, frozen=True):
    """A file of an input, or a folder that is empty (`size` None), and its name in the package."""

    name: str
    path: Path
    size: int | None
    executable: bool = False


def write(
    path: Path, texts: Mapping[str, bytes], files: Iterable[Entry], progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Write `texts`, then `files`, then `SHA256SUMS` of both; the SHA-256 of each by its name.

    Each file is read once. `progress` is told the bytes packed and those to pack in all.
    """
    entries = sorted(files, key=lambda e: e.name)
    total, done = sum(e.size or 0 for e in entries), 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as package:
        sums = {name: _write_text(package, name, text) for name, text in sorted(texts.items())}
        for entry in entries:
            if entry.size is None:
                package.writestr(_info(entry.name, stat.S_IFDIR | 0o755), b"")
                continue
            hashed = hashlib.sha256()
            for block in _copied(package, entry):
                hashed.update(block)
                done += len(block)
                progress(done, total)
            sums[entry.name] = hashed.hexdigest()
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        _write_text(package, SUMS, lines.encode())
    return sums


def entries(folder: str, root: Path) -> Iterator[Entry]:
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
