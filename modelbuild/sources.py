"""Files that recipes name: which files belong to a source, and their content digest."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modelbuild import digest
from modelbuild.digest import StatCache
from modelbuild.errors import Problem, ProblemError, problem, suggestion
from modelbuild.graph import Source
from modelbuild.job import SourceUse
from modelbuild.manifest import SourceFact

MOST_FILES = 200_000


def read(source: Source, cache: StatCache) -> tuple[SourceUse, SourceFact]:
    """The files of a source and its digest; a `ProblemError` when it is missing, empty or unreadable."""
    path = _package_folder(source) if source.role == "package" else Path(source.path)
    try:
        if not source.siblings:
            info = os.stat(path)  # noqa: PTH116 - most sources are one file, and one look at it is enough
            if modes.S_ISREG(info.st_mode):
                _require_text((path,), source)
                return SourceUse(path, (path,)), SourceFact(cache.digest(path, info), path.suffix.lower())
    except (OSError, ValueError):
        pass  # what it is instead is told below
    try:
        files = tuple(_files(path, source))
        _require_text(files, source)
        return SourceUse(path, files), _fact(path, files, cache)
    except OSError as e:
        where = str(e.filename or path)
        raise problem(
            f"`{source.text}` cannot be read", where=source.where, file=where, cause=e.strerror or e
        ) from None


def changed(
    refs: Sequence[Source], facts: Mapping[str, SourceFact], uses: Mapping[str, SourceUse], cache: StatCache
) -> tuple[Problem, ...]:
    """A problem for each source that is no longer what `facts` say: it was edited while a build read it."""
    found = []
    for ref in refs:
        use = uses[ref.field]
        try:
            same = _fact(use.path, use.files, cache) == facts[ref.field]
        except OSError:
            same = False
        if not same:
            found.append(
                Problem(
                    f"`{ref.text}` changed while the build read it",
                    ref.where,
                    hint="nothing was kept of it: build again when the file is at rest",
                )
            )
    return tuple(found)


def _fact(path: Path, files: Sequence[Path], cache: StatCache) -> SourceFact:
    if path.is_dir():
        above = len(os.path.join(path, ""))  # noqa: PTH118 - `relative_to` costs more than the digest
        entries = [(text[above:], cache.digest(text)) for text in map(str, files)]
        return SourceFact(digest.of_tree(entries))
    if len(files) == 1:
        return SourceFact(cache.digest(path), path.suffix.lower())
    entries = [(f.name.replace(path.name, "", 1) if f != path else "", cache.digest(f)) for f in files]
    return SourceFact(digest.of_tree(entries), path.suffix.lower())


def _files(path: Path, source: Source) -> Iterator[Path]:
    if path.is_dir():
        found = _in_folder(path, source.files)
        if not found:
            looked_for = ", ".join(source.files) or "any file"
            raise problem(f"`{source.text}` has none of the files needed", where=source.where, looked_for=looked_for)
        yield from found
        return
    if not path.exists():
        raise ProblemError(_missing(path, source))
    if not path.is_file():
        raise problem(f"`{source.text}` is neither a file nor a folder", where=source.where)
    yield path
    names = (pattern.format(name=path.name, stem=path.stem) for pattern in source.siblings)
    yield from sorted(p for n in dict.fromkeys(names) if (p := path.with_name(n)).is_file() and p != path)


def _in_folder(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The files in a folder that match a pattern, or all of them, in the order of `Path`."""
    if patterns:
        return sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
    found: list[str] = []
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [(str(path), ())]
    seen = 0
    while pending:
        folder, above = pending.pop()
        info = os.stat(folder)  # noqa: PTH116 - a folder may hold a hundred thousand files
        here = info.st_dev, info.st_ino
        if here in above:  # a link leads back to where it is: what is below has been listed
            continue
        with os.scandir(folder) as listing:
            entries = [(entry.path, _kind(entry)) for entry in listing]
        found += (p for p, what in entries if what == "file")
        pending += ((p, (*above, here)) for p, what in entries if what == "folder")
        seen += len(entries)
        if seen > MOST_FILES:
            raise problem(f"`{path}` has more than {MOST_FILES:,} files")
    found.sort(key=lambda text: text.split("/"))
    return [Path(text) for text in found]


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is, links followed as a build would; nothing for one that leads nowhere or to itself."""
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else ""
    except OSError:
        return ""


def _require_text(files: Sequence[Path], source: Source) -> None:
    """Jobs are JSON, which cannot hold a name that is no UTF-8."""
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            title = f"`{source.text}` has a file whose name is not UTF-8"
            raise problem(title, where=source.where, file=ascii(str(file)), hint="rename the file") from None


def _missing(path: Path, source: Source) -> Problem:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggestion(path.name, beside) if beside else f"the folder `{path.parent}` does not exist either"
    return Problem(f"`{source.text}` does not exist", source.where, (("looked for", str(path)),), hint)


def _package_folder(source: Source) -> Path:
    """The folder of `package/folder` where the package is installed, found without importing it."""
    from importlib.util import find_spec

    top, _, rest = source.text.partition("/")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        name = top.replace("_", "-")
        raise problem(f"the package `{top}` is not installed", where=source.where, hint=f"pip install {name}")
    folder = Path(spec.submodule_search_locations[0], rest)
    if not folder.is_dir():
        raise problem(f"the package `{top}` has no folder `{rest}`", where=source.where, package=folder.parent)
    return folder
