"""Versions of tools, read from the names of what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from modelbuild import tools
from modelbuild.errors import ProblemError
from tests.sandbox import Sandbox, kind_source

ASK = "import sys; from modelbuild import tools; print(tools.version(sys.argv[1]))"


def install(folder: Path, name: str, version: str) -> None:
    """Make a package seem installed in `folder`."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def asked(name: str, *folders: Path) -> str:
    """What a process with `folders` first on its path says of a package."""
    path = ":".join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env={"PYTHONPATH": f"{path}:{Path(__file__).parent.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_agrees_with_the_standard_library_on_all_that_is_installed() -> None:
    slow = {normal(d.name): d.version for d in reversed([*importlib.metadata.distributions()])}

    assert slow
    assert dict(tools.installed()) == slow


def test_what_is_not_installed_has_no_version() -> None:
    assert tools.versions(["surely-not-there", "msgspec"]) == {
        "msgspec": importlib.metadata.version("msgspec"),
        "surely-not-there": None,
    }


@pytest.mark.parametrize("name", ["my-pack.age", "My_Pack_Age", "MY-PACK-AGE"])
def test_names_are_compared_as_pep_503_says(tmp_path: Path, name: str) -> None:
    install(tmp_path, "my_pack.age", "1.0.post2")

    assert asked(name, tmp_path) == "1.0.post2"


def test_the_first_folder_on_the_path_wins_as_for_imports(tmp_path: Path) -> None:
    install(tmp_path / "a", "thing", "1")
    install(tmp_path / "b", "thing", "2")

    assert asked("thing", tmp_path / "b", tmp_path / "a") == "2"


def test_a_folder_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    install(tmp_path / "b", "thing", "2")

    assert asked("thing", tmp_path / "none", tmp_path / "b") == "2"


def test_zlib_comes_with_the_interpreter() -> None:
    assert tools.version("zlib") == zlib.ZLIB_RUNTIME_VERSION


def test_the_gpu_flavour_serves_as_onnxruntime(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime_gpu", "1.24.0")
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [sys.argv[2]]\n"
        "from modelbuild import tools; print(tools.version(sys.argv[1]))"
    )
    light = tmp_path / "light"
    light.mkdir()
    (light / "msgspec").symlink_to(Path(importlib.import_module("msgspec").__file__ or "").parent)
    done = subprocess.run(
        [sys.executable, "-c", code, "onnxruntime", str(tmp_path)],
        env={"PYTHONPATH": f"{light}:{Path(__file__).parent.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.strip() == "1.24.0", done.stderr


def test_both_flavours_beside_each_other_are_refused_by_build_and_doctor(sandbox: Sandbox) -> None:
    sandbox.package("onnxruntime", "1.24.0")
    sandbox.package("onnxruntime_gpu", "1.23.0")
    sandbox.kinds(uses=kind_source(tools={"onnxruntime": "cpu"}))
    sandbox.recipe("t: {kind: uses}")

    build, doctor = sandbox.run("build"), sandbox.run("doctor")

    assert (build.code, doctor.code) == (2, 1)
    for told in (build.err, doctor.out):
        assert "`onnxruntime` and `onnxruntime-gpu` are both installed" in told
        assert "they overwrite each other: pip uninstall -y onnxruntime onnxruntime-gpu" in told
    assert "onnxruntime 1.24.0, onnxruntime-gpu 1.23.0" in build.err


def test_hardware_is_asked_for_only_where_a_kind_names_it() -> None:
    assert tools.hardware(()) == {}


def test_an_unknown_hardware_fact_is_a_problem() -> None:
    with pytest.raises(ProblemError, match="unknown hardware fact `colour`"):
        tools.hardware(["colour"])
