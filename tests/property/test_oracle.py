"""Random graphs and random edits: after each, an incremental build holds what a clean build would.

Few examples here; `MODELBUILD_ORACLE_EXAMPLES=1000 pytest tests/property/test_oracle.py` is the long form.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelbuild import events, project, tasks
from modelbuild.decide import Decider
from modelbuild.rebuild import Rebuilder
from tests import plugin

EXAMPLES = int(os.environ.get("MODELBUILD_ORACLE_EXAMPLES", "8"))
FILES = 2
SEPARATORS = ("x", "y")


class Target(msgspec.Struct):
    """A target of the plugin's kinds, as the oracle knows it; `inputs` are indices of targets before it."""

    kind: str
    name: str
    recipe: str
    file: int = 0
    inputs: list[int] = []
    option: str = ""
    matrix: bool = False


class World(msgspec.Struct):
    """The recipes and the files that they read."""

    targets: list[Target]
    files: list[str]

    def write(self, root: Path) -> None:
        """As recipes and data files in `root`."""
        (root / "recipes").mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(self.files):
            path = root / "recipes" / f"{number}.txt"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        for recipe in "rs":
            lines = [self._line(t) for t in self.targets if t.recipe == recipe]
            path = root / "recipes" / f"{recipe}.yaml"
            path.write_text("targets:\n" + "".join(lines)) if lines else path.unlink(missing_ok=True)

    def _line(self, target: Target) -> str:
        names = [self._reference(target, self.targets[i]) for i in target.inputs]
        match target.kind:
            case "text":
                rest = f"path: {target.file}.txt"
            case "upper":
                rest = f"from: '{names[0]}', salt: '{target.option}'"
            case _:
                sep = f"matrix: {{sep: [{', '.join(SEPARATORS)}]}}" if target.matrix else f"sep: '{target.option}'"
                rest = f"from: [{', '.join(repr(n) for n in names)}], {sep}"
        return f"  {target.name}: {{kind: {target.kind}, {rest}}}\n"

    @staticmethod
    def _reference(of: Target, to: Target) -> str:
        return to.name if of.recipe == to.recipe else f"{to.recipe}:{to.name}"

    def values(self) -> dict[str, str]:
        """What every target, variants spelled out, must hold."""
        made: list[dict[str, str]] = []
        for target in self.targets:
            given = [made[i] for i in target.inputs]
            match target.kind:
                case "text":
                    found = {"": self.files[target.file]}
                case "upper":
                    found = {variant: text.upper() for variant, text in given[0].items()}
                case _:
                    parts = [text for one in given for text in one.values()]
                    found = (
                        {f"[sep={s}]": s.join(parts) for s in SEPARATORS}
                        if target.matrix
                        else {"": target.option.join(parts)}
                    )
            made.append(found)
        return {
            f"{t.recipe}:{t.name}{variant}": text
            for t, found in zip(self.targets, made, strict=True)
            for variant, text in found.items()
        }


words = st.text("ab", min_size=0, max_size=2)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A few targets, each made of some before it."""
    targets: list[Target] = []
    for number in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["text", "upper", "join"])) if number else "text"
        before = st.integers(0, number - 1) if number else st.nothing()
        targets.append(
            Target(
                kind,
                f"t{number}",
                draw(st.sampled_from("rs")),
                file=draw(st.integers(0, FILES - 1)),
                inputs=[]
                if kind == "text"
                else draw(st.lists(before, min_size=1, max_size=1 if kind == "upper" else 3, unique=True)),
                option=draw(words),
                matrix=kind == "join" and draw(st.booleans()),
            )
        )
    return World(targets, [draw(words) for _ in range(FILES)])


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, int, str, int]:
    """What is done, to which target or file (modulo their number), with which word and number."""
    return (
        draw(
            st.sampled_from(["content", "option", "input", "rename", "matrix", "unlink", "damage", "touch", "recipe"])
        ),
        draw(st.integers(0, 9)),
        draw(words),
        draw(st.integers(0, 9)),
    )


def apply(edit: tuple[str, int, str, int], world: World, root: Path) -> None:
    """Do an edit to the world, or to what was built of it in `root`."""
    what, which, word, number = edit
    target = world.targets[which % len(world.targets)]
    links = sorted(p for p in (root / "artifacts").glob("[rs]/*") if p.is_symlink())
    link = links[which % len(links)] if links else None
    match what:
        case "content":
            world.files[which % FILES] = word
        case "option":
            target.option = word
        case "input" if target.inputs:
            target.inputs = [number % world.targets.index(target)]
        case "rename":
            target.name = f"n{number}t{world.targets.index(target)}"
        case "matrix":
            target.matrix = target.kind == "join" and not target.matrix
        case "recipe":
            target.recipe = "s" if target.recipe == "r" else "r"
        case "touch":
            os.utime(root / "recipes" / f"{which % FILES}.txt")
        case "unlink" if link:
            link.unlink()
        case "damage" if link:
            path = link / "value.txt"
            path.chmod(0o644)
            path.write_text(path.read_text() + "!")


class Build:
    """A build of everything in `root`, and what was foreseen of it."""

    def __init__(self, root: Path, jobs: int) -> None:
        opened = project.load(root, {})
        names = tuple(opened.graph.nodes)
        self.plan = {d.target: d for d in Decider(opened.graph, opened.store).survey(names)}
        self.happened: list[events.AnyEvent] = []
        decider = Decider(opened.graph, opened.store)
        surveyed = decider.survey(names)
        self.happened += [events.Fresh(d.target, d.key or "") for d in surveyed if d.action == "fresh"]
        stale = tuple(d.target for d in surveyed if d.action != "fresh")
        opened.store.prepare()
        self.code = tasks.run(Rebuilder(decider, self.happened.append), stale, jobs=jobs, keep_going=False)
        self.digests = {name: record.digest for name, record in decider.finished.items()}
        self.values = {
            name: (opened.store.names.path(node.recipe, node.short) / "value.txt").read_text()
            for name, node in opened.graph.nodes.items()
        }
        opened.store.close()

    def targets(self, *kinds: type[events.Event]) -> set[str]:
        return {e.target for e in self.happened if isinstance(e, kinds)}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin's kinds, in this process and in those of the builds."""
    folder = tmp_path_factory.mktemp("plugin")
    with pytest.MonkeyPatch.context() as patch, plugin.installed(folder):
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.mark.timeout(60 + 10 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(world=worlds(), changes=st.lists(edits(), min_size=1, max_size=4), jobs=st.sampled_from([1, 2]))
def test_after_any_edits_an_incremental_build_equals_a_clean_one(
    kinds: None, world: World, changes: list[tuple[str, int, str, int]], jobs: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "project")
        world.write(root)
        last = Build(root, jobs)
        assert last.values == world.values()
        for change in changes:
            apply(change, world, root)
            world.write(root)
            last = Build(root, jobs)

            assert last.code == 0
            assert last.values == world.values()
            foreseen = {name for name, d in last.plan.items() if d.action in ("build", "maybe")}
            assert last.targets(events.Built) <= foreseen, "plan promised less than what ran"
            undone = {name for name, d in last.plan.items() if d.action == "fresh"}
            assert undone <= last.targets(events.Fresh), "plan said up to date of what was not"
            assert all(e.reasons for e in last.happened if isinstance(e, events.Started | events.Restored))
            assert all(d.reasons for d in last.plan.values() if d.action != "fresh")
        again = Build(root, jobs)
        assert again.targets(events.Built, events.Restored) == set()

        clean = Path(folder, "clean")
        world.write(clean)
        assert Build(clean, 1).digests == again.digests


def test_the_oracle_itself_would_notice(kinds: None, tmp_path: Path) -> None:
    """Damage differs from what the world should hold, until a build heals it."""
    world = World([Target("text", "t0", "r")], ["a", "b"])
    world.write(tmp_path)
    Build(tmp_path, 1)
    path = tmp_path / "artifacts" / "r" / "t0" / "value.txt"
    path.chmod(0o644)
    path.write_text("other")

    assert path.read_text() != world.values()["r:t0"]
    assert Build(tmp_path, 1).values == world.values()
