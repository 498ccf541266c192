"""A project in a temporary folder, driven by the real command line in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import plugin

REPOSITORY = Path(__file__).parent.parent
TIMEOUT_S = 120
"""No command of these tests takes this long: one that does hangs."""
KEY = re.compile(r"[0-9a-f]{32}")

KIND = '''"""{doc}"""

from __future__ import annotations

{imports}
from modelbuild.artifact import Descriptor
from modelbuild.kind import Context, Ref, Source, Spec as BaseSpec

VERSION = {version}
TOOLS: dict[str, str] = {tools}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = {resources}


class Spec(BaseSpec, frozen=True, kw_only=True, rename={{"from_": "from"}}):
    from_: list[Ref] | Ref | None = None
    path: Source | None = None
    note: str = ""


def finish(ctx: Context, text: str) -> None:
    (ctx.out / "value.txt").write_text(text)
    ctx.describe(Descriptor(format="text", extras=("value.txt",)))


def build(spec: Spec, ctx: Context) -> None:
{body}
'''


def kind_source(
    body: str = 'finish(ctx, "")',
    *,
    imports: str = "",
    version: int = 1,
    tools: Mapping[str, str] | None = None,
    resources: tuple[str, ...] = (),
) -> str:
    """The module of a kind whose `build` has `body`; its options are `from`, `path` and `note`, none required."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return KIND.format(
        doc="A kind of a test.",
        imports=imports,
        version=version,
        tools=dict(tools or {}),
        resources=resources,
        body=lines,
    )


class Ran:
    """What a command did: its exit code, what it wrote, and the events among that."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    @property
    def json(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that `build --json` told, in order, but for a line that was cut off by a kill."""
        whole = self.out[: self.out.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if "event" in line]

    @property
    def problems(self) -> list[dict[str, Any]]:
        """All problems: of failed builds, and of what could not be tried."""
        found = [p for e in self.events if e["event"] == "failed" for p in e["problems"]]
        if not self.events and self.out.startswith("{"):
            found += self.json.get("problems", [])
        return found

    def targets(self, event: str) -> list[str]:
        """The targets that an event told of, without the recipe where it is `r`."""
        return [e["target"].removeprefix("r:") for e in self.events if e["event"] == event]

    @property
    def built(self) -> list[str]:
        return self.targets("built")

    @property
    def restored(self) -> list[str]:
        return self.targets("restored")

    @property
    def fresh(self) -> list[str]:
        return self.targets("fresh")

    @property
    def failed(self) -> list[str]:
        return self.targets("failed")

    @property
    def skipped(self) -> list[str]:
        return self.targets("skipped")

    @property
    def digests(self) -> dict[str, str]:
        """Content digest of each target that was built."""
        return {e["target"]: e["digest"] for e in self.events if e["event"] == "built"}


class Sandbox:
    """A project with one recipe `r` and the plugin's kinds, under `folder`. Everything is done by its command line."""

    def __init__(self, folder: Path, plugins: Path | None = None) -> None:
        self.root = folder / "project"
        self.plugins = plugins or folder / "plugins"
        self._kinds: dict[str, str] = {}
        (self.root / "recipes").mkdir(parents=True)
        self.kinds()

    def copy(self, folder: Path) -> Sandbox:
        """A copy of the whole project under `folder`, with the same plugin."""
        other = object.__new__(Sandbox)
        other.root, other.plugins, other._kinds = folder / "project", self.plugins, self._kinds
        shutil.copytree(self.root, other.root, symlinks=True)
        return other

    @property
    def store(self) -> Path:
        return self.root / "artifacts" / ".store"

    def recipe(self, text: str, name: str = "r") -> None:
        """Write the recipe `name`; without a `targets:` line, `text` is what stands under it."""
        whole = text if re.search(r"^targets:", text, re.MULTILINE) else f"targets:\n{_indented(text)}"
        (self.root / "recipes" / f"{name}.yaml").write_text(whole)

    def edit(self, old: str, new: str, name: str = "r") -> None:
        """Change the one occurrence of `old` in a recipe."""
        path = self.root / "recipes" / f"{name}.yaml"
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path}"
        path.write_text(text.replace(old, new))

    def data(self, name: str, text: str) -> Path:
        """Write a file beside the recipe."""
        path = self.root / "recipes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def kinds(self, **sources: str) -> None:
        """Install more kinds: name to the whole text of the module (see `kind_source`)."""
        self._kinds |= sources
        plugin.install(self.plugins, self._kinds)

    def package(self, name: str, version: str) -> None:
        """Make a package of that name and version seem installed, in the place of another version."""
        for old in self.plugins.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        info = self.plugins / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def environment(self, **extra: str) -> dict[str, str]:
        """What commands see: no colour, no CI, the plugin on the path."""
        kept = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")}
        path = f"{self.plugins}{os.pathsep}{REPOSITORY}"
        return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **extra}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "modelbuild", *arguments]

    def run(self, *arguments: str, cwd: Path | None = None, **extra: str) -> Ran:
        """Run a verb in the project; `extra` is added to its environment."""
        return self.shell(shlex.join(self.command(*arguments)), cwd=cwd, **extra)

    def shell(self, line: str, *, cwd: Path | None = None, **extra: str) -> Ran:
        """Run a line of bash in the project."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=cwd or self.root,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a verb in the background, in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def build(self, *arguments: str, **extra: str) -> Ran:
        """`build --json`, whatever comes of it."""
        return self.run("build", "--json", *arguments, **extra)

    def built(self, *arguments: str) -> Ran:
        """`build --json`, which must succeed."""
        ran = self.build(*arguments)
        assert ran.code == 0, ran
        return ran

    def path(self, target: str, recipe: str = "r") -> Path:
        """The link by which a user finds a target."""
        return self.root / "artifacts" / recipe / target

    def value(self, target: str, recipe: str = "r") -> str:
        """What a target of the plugin's kinds holds."""
        return (self.path(target, recipe) / "value.txt").read_text()

    def key(self, target: str, recipe: str = "r") -> str:
        """The key that a target links to."""
        return self.path(target, recipe).readlink().parts[-2]

    def keys(self) -> set[str]:
        """Every artifact in the store."""
        return {p.name for p in self.store.iterdir() if KEY.fullmatch(p.name)} if self.store.is_dir() else set()

    def leftovers(self) -> list[str]:
        """What no finished command may leave in the store."""
        found = [p for n in ("tmp", "locks", "failed") if (self.store / n).is_dir() for p in (self.store / n).iterdir()]
        return [
            str(p.relative_to(self.store)) for p in (*found, *self.store.glob(".*"), *self.store.glob("names/*/.*"))
        ]


def _indented(text: str) -> str:
    lines = text.strip("\n").splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "".join(f"  {line[margin:]}\n" for line in lines)
