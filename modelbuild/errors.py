"""The only user-facing failure: a `Problem` with title, place, facts and hint, carried as a value."""

from __future__ import annotations

import errno
import itertools

import msgspec


class Span(msgspec.Struct, frozen=True):
    """A place in a text file: the project-relative path, the line and column (from 1), and the line's text."""

    path: str
    line: int
    column: int
    width: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, in the user's terms.

    `title` is one line, lower case, names in back-ticks. `facts` are (label, value) pairs shown aligned.
    `hint` says what to do about it.
    """

    title: str
    where: Span | None = None
    facts: tuple[tuple[str, str], ...] = ()
    hint: str | None = None

    def replacing(self, *, where: Span | None = None, facts: tuple[tuple[str, str], ...] = ()) -> Problem:
        """The same problem with a place (where it had none) and further facts."""
        return msgspec.structs.replace(self, where=self.where or where, facts=self.facts + facts)


class ProblemError(Exception):
    """Raised with one or more problems where a value cannot be returned; `exit_code` is the process's."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(p.title for p in problems))
        self.problems = problems


class BuildError(ProblemError):
    """A build failed, or a requirement did not hold."""

    exit_code = 1


def problem(title: str, *, where: Span | None = None, hint: str | None = None, **facts: object) -> ProblemError:
    """A `ProblemError` of one problem, to raise: keyword arguments become its facts, `_` shown as a space."""
    named = tuple((name.replace("_", " ").strip(), str(value)) for name, value in facts.items())
    return ProblemError(Problem(title, where, named, hint))


def from_os_error(error: OSError) -> Problem:
    """A full disk, a missing permission and their like, in the system's words."""
    title = (error.strerror or str(error)).lower()
    facts = (("path", str(error.filename)),) if error.filename else ()
    return Problem(title, facts=facts, hint=_OS_HINTS.get(error.errno or 0))


_OS_HINTS = {
    errno.ENOSPC: "free some space: `modelbuild gc` removes artifacts that no recipe names",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "check the permissions of the folder",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`) or lower `--jobs`",
}


MOST_CANDIDATES = 2000
"""Words compared for a suggestion; each takes some 20 µs."""


def suggestion(word: str, known: object) -> str | None:
    """`did you mean ...?` for the known word nearest to `word`, or None."""
    import difflib

    candidates = list(itertools.islice(map(str, known), MOST_CANDIDATES))  # type: ignore[call-overload]
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
