"""Kind `zip`: what is in the package, that it runs, and that it is the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild import artifact
from modelbuild.artifact import Artifact, Component, Descriptor, Tensor
from modelbuild.errors import ProblemError
from modelbuild.lib import archive
from tests.kinds.run import Heard, run_kind

HISTORY = (
    {"kind": "checkpoint", "version": 1, "options": {}, "inputs": {}, "tools": {}, "output": "aa"},
    {"kind": "onnx", "version": 1, "options": {"opset": 18}, "inputs": {"from": ["aa"]}, "tools": {}, "output": "bb"},
)
SHAPE = ("batch", "sequence")


def embedding_model(folder: Path, *, tokenizer: bool = True, settings: dict[str, Any] | None = None) -> Artifact:
    """A one-layer embedding model, word ids 0..7 to vectors of 4, with a word-level tokenizer."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    table = np.arange(32, dtype=np.float32).reshape(8, 4)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, SHAPE)
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, (*SHAPE, 4))
    weight = helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.tobytes(), raw=True)
    node = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    graph = helper.make_graph([node], "model", [ids], [out], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m.onnx")
    if tokenizer:
        from tokenizers import Tokenizer, models, pre_tokenizers

        known = ("[PAD]", "[UNK]", "red", "green", "blue")
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, "[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        (folder / "tokenizer").mkdir()
        words.save(str(folder / "tokenizer/tokenizer.json"))
    inputs = (Tensor("input_ids", "int64", SHAPE),)
    outputs = (Tensor("last_hidden_state", "float32", (*SHAPE, 4)),)
    descriptor = Descriptor(
        format="onnx",
        task="feature-extraction",
        precision="fp32",
        components={"model": Component("m.onnx", inputs, outputs)},
        tokenizer=("tokenizer/tokenizer.json",) if tokenizer else (),
        settings={"max_length": 2, "pooling": "mean", "normalize": False} if settings is None else settings,
    )
    artifact.write(folder, descriptor)
    return artifact.read(folder)


def plain(folder: Path, files: dict[str, bytes], *, format: str = "text") -> Artifact:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    artifact.write(folder, Descriptor(format=format))
    return artifact.read(folder)


def pack(folder: Path, *inputs: Artifact, heard: Heard | None = None) -> Path:
    made = run_kind("zip", folder, {}, inputs={"from": inputs}, history={"from": HISTORY}, heard=heard)
    return made.path / "model.zip"


def unpacked(package: Path, folder: Path) -> Path:
    with zipfile.ZipFile(package) as z:
        z.extractall(folder)
    return folder


def run_sample(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "sample.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_holds_the_model_and_all_that_running_it_needs(tmp_path: Path) -> None:
    model = embedding_model(tmp_path / "a")
    package = pack(tmp_path / "b", model)

    with zipfile.ZipFile(package) as z:
        assert z.testzip() is None
        assert set(z.namelist()) == {
            "SHA256SUMS",
            "history.json",
            "model/descriptor.json",
            "model/m.onnx",
            "model/tokenizer/tokenizer.json",
            "requirements.txt",
            "sample.py",
            "settings.json",
        }
        assert z.read("model/m.onnx") == model.model_path.read_bytes()
        assert json.loads(z.read("history.json"))["stages"] == list(HISTORY)
        (settings,) = json.loads(z.read("settings.json"))["models"]
        requirements = z.read("requirements.txt").decode().splitlines()
    assert settings["settings"] == {"max_length": 2, "pooling": "mean", "normalize": False}
    assert settings["task"] == "feature-extraction"
    assert settings["tokenizer"] == ["model/tokenizer/tokenizer.json"]
    component = settings["components"]["model"]
    assert component["file"] == "model/m.onnx"
    assert component["inputs"] == [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}]
    assert requirements == [f"{n}=={metadata.version(n)}" for n in ("numpy", "onnxruntime", "tokenizers")]


def test_descriptor_carries_task_and_settings_over(tmp_path: Path) -> None:
    pack(tmp_path / "b", embedding_model(tmp_path / "a"))
    descriptor = artifact.read(tmp_path / "b/out").descriptor
    assert (descriptor.format, descriptor.task, descriptor.extras) == ("zip", "feature-extraction", ("model.zip",))
    assert descriptor.settings["pooling"] == "mean"


def test_sums_are_of_every_file_and_right(tmp_path: Path) -> None:
    folder = unpacked(pack(tmp_path / "b", embedding_model(tmp_path / "a")), tmp_path / "c")
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files.pop("SHA256SUMS")
    assert sums == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}


def test_same_inputs_give_the_same_bytes_in_another_folder_at_another_time(tmp_path: Path) -> None:
    one, two = embedding_model(tmp_path / "one/x"), embedding_model(tmp_path / "two/y")
    os.utime(two.path / "m.onnx", (1, 1))
    (two.path / "m.onnx").chmod(0o400)
    assert pack(tmp_path / "a", one).read_bytes() == pack(tmp_path / "b", two).read_bytes()


def test_sample_runs_with_the_tokenizer_and_pools_and_truncates(tmp_path: Path) -> None:
    folder = unpacked(pack(tmp_path / "b", embedding_model(tmp_path / "a")), tmp_path / "c")
    # red = 2 -> 8 9 10 11, green = 3 -> 12 13 14 15; blue is cut off by max_length
    assert run_sample(folder, "red green blue") == "last_hidden_state [1, 4]: 10 11 12 13\n"


def test_sample_normalises_and_takes_several_texts(tmp_path: Path) -> None:
    settings = {"pooling": "cls", "normalize": True}
    folder = unpacked(pack(tmp_path / "b", embedding_model(tmp_path / "a", settings=settings)), tmp_path / "c")
    said = run_sample(folder, "red", "green blue")
    assert said.startswith("last_hidden_state [2, 4]: ")
    vectors = np.array(said.split(": ")[1].split(), dtype=float).reshape(2, 4)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_sample_runs_without_a_tokenizer_on_given_or_random_inputs(tmp_path: Path) -> None:
    model = embedding_model(tmp_path / "a", tokenizer=False, settings={})
    folder = unpacked(pack(tmp_path / "b", model), tmp_path / "c")
    assert run_sample(folder).startswith("last_hidden_state [1, 8, 4]: ")
    np.savez(folder / "in.npz", input_ids=np.array([[7]]))
    assert run_sample(folder, "--npz", "in.npz") == "last_hidden_state [1, 1, 4]: 28 29 30 31\n"
    assert "tokenizers" not in (folder / "requirements.txt").read_text()


def test_several_inputs_stand_in_folders_by_format_and_share_a_tokenizer(tmp_path: Path) -> None:
    bare = embedding_model(tmp_path / "bare", tokenizer=False)
    full = embedding_model(tmp_path / "full")
    text = plain(tmp_path / "text", {"value.txt": b"hello"})
    package = pack(tmp_path / "b", bare, full, text)
    with zipfile.ZipFile(package) as z:
        assert {n.split("/")[0] for n in z.namelist() if "/" in n} == {"onnx", "onnx-2", "text"}
        models = json.loads(z.read("settings.json"))["models"]
    assert [m["tokenizer"] for m in models] == [["onnx-2/tokenizer/tokenizer.json"]] * 2
    folder = unpacked(package, tmp_path / "c")
    assert run_sample(folder, "red", "--model", "onnx-2") == run_sample(folder, "red")


def test_an_input_without_a_model_is_packed_without_a_sample(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(tmp_path / "b", plain(tmp_path / "a", {"value.txt": b"hello"}))) as z:
        assert "sample.py" not in z.namelist()
        assert z.read("model/value.txt") == b"hello"


def test_empty_folders_and_run_bits_are_kept(tmp_path: Path) -> None:
    source = plain(tmp_path / "a", {"run.sh": b"#!/bin/sh\n"})
    (source.path / "run.sh").chmod(0o555)
    (source.path / "1").mkdir()
    with zipfile.ZipFile(pack(tmp_path / "b", source)) as z:
        assert z.getinfo("model/1/").is_dir()
        assert z.getinfo("model/run.sh").external_attr >> 16 & 0o777 == 0o755
        assert z.getinfo("model/descriptor.json").external_attr >> 16 & 0o777 == 0o644


def test_a_symlink_in_the_input_is_refused(tmp_path: Path) -> None:
    source = plain(tmp_path / "a", {})
    (source.path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ProblemError, match="the input holds a symlink"):
        pack(tmp_path / "b", source)


def test_a_name_that_escapes_on_other_systems_is_refused(tmp_path: Path) -> None:
    source = plain(tmp_path / "a", {"..\\..\\x": b""})
    with pytest.raises(ProblemError, match="a file name that some systems cannot unpack"):
        pack(tmp_path / "b", source)


def test_weights_are_read_once(tmp_path: Path) -> None:
    source = plain(tmp_path / "a", {"big.bin": bytes(32 << 20)})
    before = characters_read()
    pack(tmp_path / "b", source)
    assert characters_read() - before < 36 << 20


def characters_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_files_over_four_gibibytes_are_packed_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered instead of writing 4 GiB: the field is the same."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    heard = Heard()
    content = bytes(3 * archive.BLOCK)
    package = pack(tmp_path / "b", plain(tmp_path / "a", {"big.bin": content}), heard=heard)
    with zipfile.ZipFile(package) as z:
        assert z.getinfo("model/big.bin").extract_version == zipfile.ZIP64_VERSION
        assert z.read("model/big.bin") == content
    assert heard.progress[-1].done == heard.progress[-1].total
