"""Each promise of SECURITY.md, held by a test of its name. A canary file appears where code ran that must not run."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import ProblemError
from modelbuild.lib.tokenizing import Tokenizer
from tests import models
from tests.kinds.run import run_kind
from tests.sandbox import Sandbox, kind_source

ROOT = Path(__file__).parent.parent
ESCAPES = "\x1b[31mred\x1b]0;title\x07\r\x9b1m\u202e"
SECRET = "hf_secretsecretsecret"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def fresh(folder: Path) -> Path:
    """A folder for one more attempt at a build."""
    return Path(tempfile.mkdtemp(dir=folder))


class Payload:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_every_promise_has_its_test() -> None:
    promises = re.findall(
        r"^- \*\*(.+?)\*\*.*?`(test_\w+)`", (ROOT / "SECURITY.md").read_text(), re.MULTILINE | re.DOTALL
    )
    here = {name for name in globals() if name.startswith("test_")} - {"test_every_promise_has_its_test"}
    assert {name for _, name in promises} == here


# --- code -------------------------------------------------------------------------------------------------------


def test_a_recipe_runs_no_code(sandbox: Sandbox, canary: Path) -> None:
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        sandbox.recipe(
            f"a: {{kind: text, path: !<tag:yaml.org,2002:{tag[2:]}> ['touch {canary}']}}\nb: {tag} ['touch {canary}']"
        )
        for verb in (["list"], ["build"], ["gc"]):
            assert "Traceback" not in sandbox.run(*verb).err
    sandbox.recipe(f"a: {{kind: text, path: '$(touch {canary})'}}\nb: {{kind: text, path: '`touch {canary}`'}}")
    assert sandbox.run("build").code == 2
    assert not canary.exists()


def test_a_recipe_s_kind_is_not_a_module_to_import(sandbox: Sandbox, canary: Path) -> None:
    (sandbox.root / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    (sandbox.root / "recipes" / "modelbuild_evil.py").write_text(f"open({str(canary)!r}, 'w')")
    for name in ("evil", "os", "modelbuild.evil", "../evil", "recipes.modelbuild_evil"):
        sandbox.recipe(f"a: {{kind: '{name}'}}")
        assert sandbox.run("build").code == 2
    sandbox.recipe("a: {kind: checkpoint, package: evil/x}")
    assert sandbox.run("build").code == 2
    assert not canary.exists()


def test_code_beside_a_recipe_is_not_imported(sandbox: Sandbox, canary: Path) -> None:
    """Neither by the driver nor by a worker: the current folder is not on their path."""
    for name in ("json", "msgspec", "torch", "onnx", "sitecustomize", "usercustomize", "modelbuild"):
        for folder in (sandbox.root, sandbox.root / "recipes"):
            (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")
    installed = [str(Path(sys.executable).with_name("modelbuild")), "build"]
    for folder in (sandbox.root, sandbox.root / "recipes"):
        done = subprocess.run(installed, cwd=folder, env=sandbox.environment(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not canary.exists()


@pytest.mark.torch
def test_a_pickled_checkpoint_never_runs_its_code(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "model"
    models.write_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    plain = pickle.dumps({"a": Payload(canary)})
    with zipfile.ZipFile(folder / "zipped", "w") as whole:
        whole.writestr("archive/data.pkl", plain)
        whole.writestr("archive/version", "3\n")
    for data in (plain, pickle.dumps(Payload(canary), 0), (folder / "zipped").read_bytes()):
        (folder / "pytorch_model.bin").write_bytes(data)
        for allow in (False, True):
            with pytest.raises(ProblemError, match="pickled"):
                run_kind("checkpoint", fresh(tmp_path), {"allow_pickle": allow}, sources={"path": folder})
    assert not canary.exists()


def test_code_in_a_checkpoint_is_neither_taken_nor_run(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "model"
    models.write_tokenizer(folder)
    code = {
        "auto_map": {
            "AutoModel": "modeling.Evil",
            "AutoConfig": "modeling.Evil",
            "AutoTokenizer": ["modeling.Evil", None],
        }
    }
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", **code}))
    with pytest.raises(ProblemError, match="code of its own, which is never run"):
        run_kind("checkpoint", tmp_path / "build", {}, sources={"path": folder})

    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9, **code}))
    made = run_kind("checkpoint", tmp_path / "other", {}, sources={"path": folder})

    assert not list(made.path.rglob("*.py"))
    assert not canary.exists()


def test_trust_remote_code_is_never_on() -> None:
    """Not a setting, a default, or an argument anywhere."""
    sources = {p: p.read_text() for p in (ROOT / "modelbuild").rglob("*.py")}
    assert [
        str(p) for p, text in sources.items() if re.search(r"trust_remote_code['\"]?\s*[=:]\s*(?!False)", text)
    ] == []


def test_an_onnx_file_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    """Weights by `..`, an absolute path or a link; in the graph or in a function's body, which ONNX Runtime inlines."""
    import onnx
    from onnx import TensorProto, helper

    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRETSECRETSECR")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "up").symlink_to("..")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    for location in ("../secret", str(secret), "link", "up/secret", "./../secret", "..\\secret", "file:///etc/passwd"):
        weights = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            weights.external_data.add(key=key, value=value)
        body = [helper.make_node("Constant", [], ["c"], value=weights), helper.make_node("Add", ["x", "c"], ["y"])]
        add = helper.make_node("Add", ["x", "w"], ["y"])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        function = helper.make_function("f", "F", ["x"], ["y"], body, opsets[:1])
        call = helper.make_node("F", ["x"], ["y"], domain="f")
        graphs = (
            (helper.make_graph([add], "g", ends[:1], ends[1:], [weights]), []),
            (helper.make_graph(body, "g", ends[:1], ends[1:]), []),
            (helper.make_graph([call], "g", ends[:1], ends[1:]), [function]),
        )
        for number, (graph, functions) in enumerate(graphs):
            model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
            (folder / "m.onnx").write_bytes(model.SerializeToString())
            out = fresh(tmp_path)
            with pytest.raises(ProblemError):
                run_kind("onnx", out, {}, sources={"path": folder / "m.onnx"})
            held = [p for p in out.rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()] if out.exists() else []
            assert held == [], (location, number)
    assert onnx is not None


def test_an_onnx_file_loads_no_library(tmp_path: Path, canary: Path) -> None:
    """Not by metadata that names custom operators, by session settings in the file, or by an EPContext node."""
    import onnx
    from onnx import helper

    library = tmp_path / "evil.so"
    source = tmp_path / "evil.c"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) void f() {{ fclose(fopen("{canary}", "w")); }}\n'
    )
    if subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=False).returncode:
        library.write_bytes(b"\x7fELF")
    path = models.write_onnx(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    settings = {"session_options": {"ep.dynamic.library": str(library), "custom_ops_library": str(library)}}
    helper.set_model_props(model, {"ort_config": json.dumps(settings), "custom_op_library": str(library)})
    path.write_bytes(model.SerializeToString())
    run_kind("onnx", tmp_path / "harmless", {}, sources={"path": path})
    for domain, op in (("com.microsoft", "EPContext"), ("ai.onnx.contrib", "PyOp"), ("evil", "Evil")):
        node = model.graph.node[4]
        node.op_type, node.domain = op, domain
        del node.attribute[:]
        node.attribute.extend(
            [helper.make_attribute("ep_cache_context", str(library)), helper.make_attribute("embed_mode", 0)]
        )
        del model.opset_import[1:]
        model.opset_import.add(domain=domain, version=1)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ProblemError):
            run_kind("onnx", fresh(tmp_path), {}, sources={"path": path})
    assert not canary.exists()


def test_a_tokenizer_file_is_data(tmp_path: Path, canary: Path) -> None:
    """Whatever is in it, it loads or is a problem."""
    folder = tmp_path / "model"
    models.write_tokenizer(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    evil = {"type": "Evil", "pattern": {"Regex": "(a+)+$"}, "__reduce__": f"touch {canary}"}
    texts = [json.dumps({**whole, key: value}) for key in whole for value in (evil, [], -1, "x", {"type": "Sequence"})]
    texts += ["", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "null", "{}"]
    descriptor = Descriptor("safetensors", tokenizer=("tokenizer.json",))
    loaded = 0
    for text in texts:
        (folder / "tokenizer.json").write_text(text)
        try:
            Tokenizer(Artifact(folder, descriptor))
        except ProblemError:
            continue
        loaded += 1
    assert loaded < len(texts)
    assert not canary.exists()


# --- writing ----------------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in sorted(folder.rglob("*"))}


def test_nothing_is_written_outside_artifacts(sandbox: Sandbox, tmp_path: Path) -> None:
    for name in ("../up", "a/b", "..", "/abs", ".store", "a\nb"):
        quoted = json.dumps(name)
        for text in (
            f"targets:\n  {quoted}: {{kind: text, path: a.txt}}\n",
            f"model: {quoted}\ntargets:\n  a: {{kind: text, path: a.txt}}\n",
        ):
            sandbox.recipe(text)
            sandbox.data("a.txt", "x")
            assert sandbox.run("build").code == 2, name
    assert not (sandbox.root / "artifacts").exists()
    sandbox.recipe(
        "targets:\n  a: {kind: text, path: a.txt}\n  b: {kind: upper, from: a, matrix: {salt: ['../..', '/etc']}}\n"
    )
    before = {k: v for k, v in listing(tmp_path).items() if "/project/artifacts" not in k}
    for verb in (["build"], ["status"], ["gc"], ["pin", "a"], ["clean"], ["build"], ["verify"]):
        sandbox.run(*verb)
    after = {k: v for k, v in listing(tmp_path).items() if "/project/artifacts" not in k}
    project = str(sandbox.root)
    assert {k: v for k, v in after.items() if k != project} == {k: v for k, v in before.items() if k != project}


def test_links_in_the_place_of_our_folders_are_not_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}")
    sandbox.data("a.txt", "x")
    sandbox.built()
    precious = tmp_path / "precious"
    (precious / "sub").mkdir(parents=True)
    (precious / "file").write_text("keep")
    (precious / "a").symlink_to("file")
    before = listing(precious)
    places = [sandbox.store / n for n in ("tmp", "locks", "failed", "pins", "names", "names/r")] + [
        sandbox.root / "artifacts" / "r"
    ]
    for place in places:
        aside = tmp_path / "aside"
        there = os.path.lexists(place)
        if there:
            place.rename(aside)
        place.symlink_to(precious)
        sandbox.data("a.txt", f"new {place.name}")
        for verb in (["build"], ["gc"], ["clean"], ["pin", "a"]):
            ran = sandbox.run(*verb)
            assert ran.code in (0, 1, 2), ran
            assert "Traceback" not in ran.err
            assert listing(precious) == before, (place, verb)
        place.unlink()
        if there:
            aside.rename(place)
    assert sandbox.built().code == 0


def test_gc_and_clean_remove_nothing_that_is_not_ours(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")
    sandbox.built()
    mine = sandbox.root / "artifacts" / "mine"
    mine.mkdir()
    (mine / "latest").symlink_to("/somewhere/of/mine")
    (mine / "notes").write_text("keep")
    (sandbox.root / "artifacts" / "r" / "own").symlink_to("/somewhere/else")
    (sandbox.store / "README").write_text("keep")

    for verb in ("gc", "clean", "gc"):
        assert sandbox.run(verb).code == 0

    assert {p.name for p in mine.iterdir()} == {"latest", "notes"}
    assert (sandbox.root / "artifacts" / "r" / "own").is_symlink()
    assert (sandbox.store / "README").exists()


def test_artifacts_may_be_a_link_to_a_larger_disk(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "other").write_text("keep")
    (sandbox.root / "artifacts").symlink_to(tmp_path / "disk")
    sandbox.recipe("a: {kind: text, path: a.txt}")
    sandbox.data("a.txt", "x")

    sandbox.built()
    sandbox.run("gc")
    sandbox.run("clean")

    assert (tmp_path / "disk" / "other").read_text() == "keep"


def test_paths_of_a_recipe_stay_inside_the_project(sandbox: Sandbox, tmp_path: Path) -> None:
    """Also through links; `onnx` and all kinds but `checkpoint` and `dataset`."""
    (tmp_path / "secret").write_text("x")
    (sandbox.root / "recipes" / "link").symlink_to(tmp_path / "secret")
    (sandbox.root / "recipes" / "up").symlink_to(tmp_path)
    for path in ("../../secret", str(tmp_path / "secret"), "link", "up/secret", "a/../../../secret"):
        sandbox.recipe(f"a: {{kind: text, path: {path}}}")
        ran = sandbox.build()
        assert (ran.code, "outside the project" in ran.problems[0]["title"]) == (2, True), (path, ran)


# --- telling ----------------------------------------------------------------------------------------------------


def test_no_secret_of_the_environment_is_written(sandbox: Sandbox) -> None:
    sandbox.recipe(
        "a: {kind: text, path: a.txt}\nb: {kind: upper, from: a}\n"
        "bad: {kind: fail, from: a, when: x}\nz: {kind: zip, from: b}"
    )
    sandbox.data("a.txt", "x")
    secrets = dict.fromkeys(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "AZURE_CLIENT_SECRET"), SECRET)

    rans = [
        sandbox.build("-k", **secrets),
        *(sandbox.run(*v, **secrets) for v in (["show", "b"], ["doctor"], ["why", "b"])),
    ]

    assert rans[0].failed == ["bad"]
    found = [p for p in (sandbox.root / "artifacts").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert found == []
    assert [ran for ran in rans if SECRET in ran.out + ran.err] == []


def test_what_builds_and_files_say_cannot_steer_a_terminal(sandbox: Sandbox) -> None:
    text = json.dumps(ESCAPES)
    body = (
        f"ctx.log({text})\nctx.log('a\\n::error::b\\n  ::stop-commands::c')\n"
        f"ctx.progress(1, 2, {text})\nctx.progress(2, 2, {text})\n"
        f"(ctx.out / {text}).write_text('x')\nctx.metric({text}, 1.0, {text})\n"
        f"(ctx.out / 'value.txt').write_text('x')\n"
        f"ctx.describe(Descriptor(format={text}, task={text}, settings={{{text}: {text}}}, metrics={{{text}: 1.0}}))\n"
        f"if spec.note == 'bad':\n    raise ValueError({text})"
    )
    sandbox.kinds(loud=kind_source(body))
    sandbox.recipe(f"a: {{kind: loud, note: {text}}}")
    first = sandbox.run("build")
    assert first.code == 0, first
    sandbox.recipe('a: {kind: loud, note: "x\\e[1mx"}\nb: {kind: loud, note: bad}')
    key = sandbox.key("a")
    rans = [
        first,
        *(
            sandbox.run(*v)
            for v in (
                ["plan"],
                ["status"],
                ["why", "a"],
                ["build", "-k"],
                ["show", "a"],
                ["diff", "a", key],
                ["list"],
                ["graph"],
            )
        ),
    ]
    (sandbox.path("a") / "value.txt").chmod(0o644)
    (sandbox.path("a") / "value.txt").write_text("damaged")
    rans += [sandbox.run("verify"), sandbox.run("status"), sandbox.run("gc", "-n")]
    terminal = sandbox.shell(
        "script -qec '" + " ".join(sandbox.command("build", "-k")) + "' /dev/null", TERM="xterm", NO_COLOR="1"
    )

    for ran in rans:
        shown = ran.out + ran.err
        assert "Traceback" not in shown
        assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown) == [], ran
        assert re.findall(r"^\s*::", shown, re.MULTILINE) == [], ran
    assert "\x1b[31mred" not in terminal.out
    assert "\x1b]0;" not in terminal.out


def test_a_job_summary_holds_no_markup_of_others(sandbox: Sandbox, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>|![a](http://e/x.png) @everyone [l](http://e) `code` ``| x"
    sandbox.kinds(
        says=kind_source(f"from modelbuild.errors import problem\nraise problem({evil!r} + '\\n| new | row |')")
    )
    sandbox.recipe("a: {kind: says}")
    summary = tmp_path / "summary.md"

    sandbox.run("build", GITHUB_STEP_SUMMARY=str(summary))

    text = summary.read_text()
    (row,) = [line for line in text.splitlines() if "r:a" in line]
    assert "<img" not in text
    assert "![" not in text
    assert "@everyone" not in text
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


# --- packing ----------------------------------------------------------------------------------------------------


def test_an_archive_unpacks_nowhere_else(tmp_path: Path) -> None:
    """More names in tests/fuzz/test_readers.py."""
    from modelbuild.lib import archive

    for name in ("..\\evil", "a\nb", "\u202egnp"):
        folder = tmp_path / ascii(name).strip("'").replace("\\", "-")
        folder.mkdir()
        (folder / name).write_text("x")
        with pytest.raises(ProblemError, match="cannot unpack"):
            list(archive.entries("model", folder))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ProblemError, match="a symlink"):
        list(archive.entries("model", tmp_path / "in"))


def test_what_lies_in_the_store_is_checked_before_use(sandbox: Sandbox) -> None:
    """A descriptor of a sealed artifact that names a file outside, as a hostile store might hold."""
    from modelbuild import artifact

    folder = sandbox.root / "x"
    folder.mkdir()
    (folder / artifact.DESCRIPTOR).write_bytes(msgspec.json.encode(Descriptor("onnx", extras=("../../../etc/passwd",))))
    with pytest.raises(ProblemError, match="outside the artifact"):
        artifact.read(folder)
