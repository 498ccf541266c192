"""Whatever bytes lie in the store or come from a worker, they are read as what they say or as nothing."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild import artifact, compiled, digest, events, job, names, pins, project
from modelbuild.artifact import Component, Descriptor
from modelbuild.errors import ProblemError
from modelbuild.executors import local
from modelbuild.lib import archive
from modelbuild.manifest import Manifest
from modelbuild.record import File, Record, seal, unseal
from modelbuild.report.live import Bars
from modelbuild.report.markdown import summary
from modelbuild.report.plain import Lines
from modelbuild.store import Store
from tests.sandbox import Sandbox, kind_source

EXAMPLES = int(os.environ.get("MODELBUILD_FUZZ_EXAMPLES", "150"))
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

RECORD = Record(
    key="0" * 32,
    manifest=Manifest(kind="text", version=1, options={}, inputs={}, lineage={}, sources={}, tools={}, hardware={}),
    digest="1" * 32,
    files=(File("a", 1, "2" * 32),),
    log=("x",),
)
DESCRIPTOR = Descriptor("onnx", components={"model": Component("model.onnx")}, tokenizer=("tokenizer.json",))
MESSAGES: tuple[job.AnyMessage, ...] = (
    job.Progress(1, 2, "x"),
    job.Log("x"),
    job.Metric("m", 1.0, "s"),
    job.Linked("a"),
    job.Failed(()),
    job.Done(1.0, 1),
)
REASONS = names.Reasons("0" * 32, "build", 1.0, ("because",))
BOTTOMLESS = [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"t":"log","x":' + b"[" * 200_000,
    b'{"settings":' + b'{"a":' * 200_000,
]
OTHER = [b"", b"\0" * 99, b"\xff\xfe", b'"\xff"', b'{"format":"\xff"}', b"1" * 10_000, b'{"t":"log","text":"\\ud800"}']


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few changed, cut off or repeated."""

    def change(seed: int) -> bytes:
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(4):
                case 0:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del data[at : at + chance.randrange(9)]
                case 2:
                    data[at:at] = chance.choice([b"9" * 30, b"null", b"{", b"[", b'"', b"-", b"1e999", b"\xff", b"../"])
                case _:
                    del data[at:]
        return bytes(data)

    return st.integers(0, 2**32).map(change)


def hostile(*wholes: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(BOTTOMLESS + OTHER) | st.binary(max_size=60) | st.one_of(*map(mutated, wholes))


@quick
@given(data=hostile(msgspec.json.encode(DESCRIPTOR)))
def test_a_descriptor_is_read_or_is_a_problem(tmp_path: Path, data: bytes) -> None:
    (tmp_path / artifact.DESCRIPTOR).write_bytes(data)
    try:
        read = artifact.read(tmp_path).descriptor
    except ProblemError:
        return
    for file in (*read.tokenizer, *read.extras, *(c.file for c in read.components.values())):
        assert (tmp_path / file).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("file", ["../a", "/etc/passwd", "a/../../b", "", ".", "a\0b"])
def test_a_descriptor_names_no_file_outside_its_artifact(tmp_path: Path, file: str) -> None:
    for descriptor in (
        Descriptor("x", components={"model": Component(file)}),
        Descriptor("x", tokenizer=(file,)),
        Descriptor("x", extras=(file,)),
    ):
        artifact.write(tmp_path, descriptor)
        with pytest.raises(ProblemError, match="outside the artifact"):
            artifact.read(tmp_path)


@quick
@given(data=hostile(seal(RECORD)), sealed=st.booleans())
def test_a_record_is_what_was_sealed_or_none(data: bytes, sealed: bool) -> None:
    """Even one whose seal is right, as somebody might make it."""
    found = unseal(digest.of_bytes(data).encode() + b"\n" + data if sealed else data)
    assert found is None or isinstance(found, Record)


@quick
@given(data=hostile(msgspec.json.encode(REASONS), msgspec.json.encode(pins.Pin("0" * 32, "r:a"))))
def test_reasons_and_pins_are_read_or_left_out(tmp_path: Path, data: bytes) -> None:
    store = Store(tmp_path)
    for path in (store.root / "names" / "r" / "a.jsonl", store.root / "pins" / ("0" * 32)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    assert all(isinstance(r, names.Reasons) for r in store.names.reasons("r", "a"))
    assert [p.key for p in pins.every(store)] == ["0" * 32]
    store.names.add_reasons("r", "a", REASONS)
    assert store.names.reasons("r", "a")[-1] == REASONS


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[compiled.Cache, bytes]:
    """A project's kept graph and its bytes."""
    root = tmp_path_factory.mktemp("kept")
    (root / "recipes").mkdir()
    (root / "artifacts" / ".store").mkdir(parents=True)
    (root / "recipes" / "r.yaml").write_text("targets:\n  a: {kind: onnx, path: m.onnx}\n")
    project.load(root, {}).store.close()
    cache = compiled.Cache(Store(root / "artifacts"), root, project.find(root), {})
    assert cache.read() is not None
    return cache, cache.path.read_bytes()


@quick
@given(seed=st.integers(0, 2**32), sealed=st.booleans())
def test_a_kept_graph_is_as_it_was_or_none(kept: tuple[compiled.Cache, bytes], seed: int, sealed: bool) -> None:
    cache, whole = kept
    body = bytearray(whole[32:])
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    cache.path.write_bytes((digest.of_bytes(bytes(body)).encode() if sealed else whole[:32]) + body)

    cache.read()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x91" * 200_000,
        b"\x81\xa1a" * 100_000,
        *(bytes([kind, *b"\xff" * 4]) for kind in (0xDD, 0xDF, 0xDB, 0xC6)),
    ],
    ids=["empty", "arrays", "maps", "huge array", "huge map", "huge text", "huge bytes"],
)
def test_a_sealed_graph_of_hostile_sizes_is_none(kept: tuple[compiled.Cache, bytes], body: bytes) -> None:
    cache, _ = kept
    for data in (body, digest.of_bytes(body).encode() + body):
        cache.path.write_bytes(data)
        assert cache.read() is None


@quick
@given(data=hostile(*map(msgspec.json.encode, MESSAGES)))
def test_a_line_of_a_worker_is_a_message_that_every_report_can_show_or_nothing(data: bytes) -> None:
    message = job.hear(data)
    if message is None:
        return
    job.hear(job.line(message))
    told: list[events.AnyEvent] = [events.Started("r:a", "text", ("x",))]
    match message:
        case job.Progress(done, total, what):
            told.append(events.Progressed("r:a", done, total, what))
        case job.Log(text):
            told.append(events.Said("r:a", text))
        case job.Failed(problems):
            told.append(events.Failed("r:a", problems))
    out = io.StringIO()
    lines, bars = Lines(out, False), Bars(False)
    bars.console.file = out
    for event in told:
        lines(event)
        bars(event)
    summary(told)
    assert "\x1b" not in out.getvalue()


GARBAGE: dict[str, str] = {
    "bytes": "os.write(fd, bytes(range(256)) * 4000)",
    "one endless line": "[os.write(fd, b'a' * 1_000_000) for _ in range(150)]",
    "bottomless": "os.write(fd, b'[' * 500_000 + b'\\n' + b'{\"t\":\"log\",\"text\":' + b'[' * 500_000 + b'\\n')",
    "half a message": 'os.write(fd, b\'{"t":"log","te\')',
    "many lines": '[os.write(fd, b\'{"t":"log","text":"x"}\\n\' * 1000) for _ in range(30)]',
    "a claim to be done": 'os.write(fd, b\'{"t":"done","cpu_s":-1,"peak_rss_bytes":%d}\\n\' % 2**80)',
    "claims of links": 'os.write(fd, b\'{"t":"linked","dst":"../../../etc/passwd"}\\n\' * 99)',
}
ON_THE_PIPE = """\
fd = int(sys.argv[sys.argv.index("--events") + 1])
{act}
finish(ctx, "x")"""


def test_a_worker_that_talks_garbage_neither_breaks_nor_bloats_the_driver(sandbox: Sandbox) -> None:
    kinds = {
        f"g{i}": kind_source(ON_THE_PIPE.format(act=act), imports="import os, sys\n")
        for i, act in enumerate(GARBAGE.values())
    }
    sandbox.kinds(**kinds)
    sandbox.recipe("\n".join(f"{name}: {{kind: {name}}}" for name in kinds))

    ran = sandbox.shell(f"ulimit -v 1000000; {' '.join(sandbox.command('build', '-k', '--json'))} > out.json")

    assert ran.code in (0, 1), ran
    assert "Traceback" not in ran.err
    assert sandbox.run("verify").code == 0
    keys = sandbox.keys()
    for key in keys:
        assert (sandbox.store / key / "record.json").stat().st_size < 1_000_000
    assert sandbox.run("status", "--json").code == 0


def test_a_worker_that_says_that_it_is_done_and_dies_has_failed() -> None:
    outcome = local._outcome([job.Done(1.0, 1)], -9)
    assert outcome.problems


hostile_names = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
        lambda n: n not in (".", "..") and len(n.encode()) < 200
    )
    | st.sampled_from(["C:x", "..x", "...", "a\\..\\b", "CON", "a ", "~", "-rf", "\u202egnp.exe", "%2e%2e", "a\nb"]),
    min_size=1, max_size=3,
)  # fmt: skip


@quick
@given(paths=st.lists(hostile_names, min_size=1, max_size=4))
def test_an_archive_unpacks_to_what_went_in_and_nowhere_else(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]
) -> None:
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    for parts in paths:
        file = root.joinpath(*parts)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        except OSError:
            continue  # a file where another path has a folder
    package = out / "p.zip"
    try:
        sums = archive.write(package, {}, archive.entries("model", root), lambda done, total: None)
    except ProblemError:
        return
    with zipfile.ZipFile(package) as opened:
        listed = opened.namelist()
        assert len(set(listed)) == len(listed)
        assert not any(n.startswith(("/", "\\")) or ".." in n.split("/") or "\\" in n for n in listed)
        opened.extractall(out / "unpacked")
    assert {p.name for p in out.iterdir()} == {"p.zip", "unpacked"}
    found = {p.relative_to(out / "unpacked").as_posix() for p in (out / "unpacked").rglob("*") if p.is_file()}
    assert found == {*sums, archive.SUMS}


@pytest.mark.parametrize(
    "make", [lambda p: os.mkfifo(p), lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("..")]
)
def test_an_archive_takes_no_links_and_no_pipes(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(ProblemError, match="cannot be packed"):
        list(archive.entries("model", tmp_path))
