"""Small real kinds, installed as a plugin package is: `install(folder)`, then have `folder` on `sys.path`.

They read and write `value.txt`. `text` copies a source; `upper` upper-cases it and ignores its `salt` (early cutoff);
`join` joins several; `fail` fails when its input holds a word; `slow` takes its time and makes a large file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "modelbuild_textkinds"

_HEAD = '''"""{doc}"""

from __future__ import annotations

{imports}from modelbuild.artifact import Descriptor
from modelbuild.kind import Context, Ref, Source, Spec as BaseSpec

VERSION = 1
TOOLS: dict[str, str] = {{}}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()


def finish(ctx: Context, text: str) -> None:
    (ctx.out / "value.txt").write_text(text)
    ctx.describe(Descriptor(format="text", extras=("value.txt",)))


def inputs(ctx: Context, field: str = "from") -> list[str]:
    return [(a.path / "value.txt").read_text() for a in ctx.inputs[field]]


'''

_KINDS = {
    "text": (
        "The content of a file.",
        "",
        """class Spec(BaseSpec, frozen=True, kw_only=True):
    path: Source


def build(spec: Spec, ctx: Context) -> None:
    finish(ctx, ctx.sources["path"].read_text())
""",
    ),
    "upper": (
        "The input in upper case; `salt` does not change the output.",
        "",
        """class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref
    salt: str = ""


def build(spec: Spec, ctx: Context) -> None:
    finish(ctx, "".join(inputs(ctx)).upper())
""",
    ),
    "join": (
        "Several inputs with a separator between them.",
        "",
        """class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: list[Ref]
    sep: str = ""


def build(spec: Spec, ctx: Context) -> None:
    finish(ctx, spec.sep.join(inputs(ctx)))
""",
    ),
    "fail": (
        "The input as it is; fails when it holds the word `when`.",
        "from modelbuild.errors import problem\n",
        """class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref | None = None
    when: str = ""


def build(spec: Spec, ctx: Context) -> None:
    text = "".join(inputs(ctx))
    if spec.when in text:
        raise problem(f"the input holds `{spec.when}`", hint="take it out")
    finish(ctx, text)
""",
    ),
    "slow": (
        "The input as it is, after `seconds`, beside a file of `bytes` bytes.",
        "import time\n\n",
        """class Spec(BaseSpec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Ref | None = None
    seconds: float = 0.1
    bytes: int = 0


def build(spec: Spec, ctx: Context) -> None:
    steps = 10
    with (ctx.out / "data.bin").open("wb") as out:
        for step in range(steps):
            out.write(b"x" * (spec.bytes // steps))
            out.flush()
            time.sleep(spec.seconds / steps)
            ctx.progress(step + 1, steps, "wait")
    finish(ctx, "".join(inputs(ctx)))
""",
    ),
}


def install(folder: Path, kinds: dict[str, str] | None = None) -> None:
    """Write the package and its dist-info into `folder`; `kinds` adds modules by kind name (their whole source)."""
    package = folder / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    sources = {name: _HEAD.format(doc=doc, imports=imports) + body for name, (doc, imports, body) in _KINDS.items()}
    sources |= kinds or {}
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    info = folder / f"{PACKAGE}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    entries = "".join(f"{name} = {PACKAGE}.{name}\n" for name in sources)
    (info / "entry_points.txt").write_text(f"[modelbuild.kinds]\n{entries}")


@contextlib.contextmanager
def installed(folder: Path, kinds: dict[str, str] | None = None) -> Iterator[None]:
    """The kinds of `install`, known to this process for as long as the block lasts."""
    from modelbuild import kind

    install(folder, kinds)
    sys.path.insert(0, str(folder))
    _forget()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _forget()
    assert not kind.plugins().keys() & _KINDS.keys()


def _forget() -> None:
    """What was found and imported before may be another folder's."""
    from modelbuild import kind

    kind.plugins.cache_clear()
    kind.load.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    importlib.invalidate_caches()
