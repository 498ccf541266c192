"""What the servers' tests serve: tiny seeded models of each task, exported and put in repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelbuild.artifact import Artifact
from modelbuild.lib.triton_serving.text_model import TextModel
from tests import models
from tests.kinds.run import run_kind

CLASSES = {
    "feature-extraction": "BertModel",
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
}
LABELS = {
    "text-classification": ["bad", "so-so", "good"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
}


def checkpoint(folder: Path, task: str, **config: Any) -> Path:
    """A tiny BERT for a task with lively weights (random ones of the usual size answer everything alike)."""
    import torch
    import transformers

    labels = LABELS.get(task)
    if labels and "id2label" not in config:
        config = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}, **config}
    made = transformers.BertConfig(**models.ENCODER, initializer_range=0.5, **config)
    torch.manual_seed(0)
    getattr(transformers, CLASSES[task])(made).save_pretrained(folder)
    models.write_tokenizer(folder)
    return folder


def exported(folder: Path, source: Path, task: str) -> Artifact:
    """The ONNX artifact of a checkpoint's folder."""
    adopted = run_kind("checkpoint", folder / "checkpoint", {}, sources={"path": source})
    return run_kind("onnx", folder / "onnx", {"task": task}, inputs={"from": adopted})


def with_shape(path: Path, batch: int, sequence: int) -> Path:
    """A hand-made encoder whose batch and sequence are fixed."""
    import onnx

    models.write_onnx(path)
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, (batch, sequence), strict=False):
            dim.dim_value = size
    onnx.save(model, str(path))
    return path


def accumulator(path: Path) -> Path:
    """A graph for sequences: `y` is `x` plus `before`, or `x` alone where `start` is 1."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def column(name: str, dtype: int) -> Any:
        return helper.make_tensor_value_info(name, dtype, ["batch", 1])

    nodes = [
        helper.make_node("Cast", ["start"], ["started"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "started"], ["kept"]),
        helper.make_node("Mul", ["before", "kept"], ["old"]),
        helper.make_node("Add", ["old", "x"], ["y"]),
    ]
    inputs = [
        column("x", TensorProto.FLOAT),
        column("before", TensorProto.FLOAT),
        column("start", TensorProto.INT32),
    ]
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    graph = helper.make_graph(nodes, "accumulator", inputs, [column("y", TensorProto.FLOAT)], [one])
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class Direct(TextModel):
    """A text model that runs its graph here, as the server would have it run."""

    def __init__(self, made: Artifact) -> None:
        from modelbuild.lib import sessions

        name = made.descriptor.settings["model"]
        self.folder = made.path / "models" / name / "1"
        self.initialize({})
        graph = made.path / "models" / self.settings["model"] / "1" / "model.onnx"
        self.session = sessions.open_session(graph)

    def _graph(self, inputs: dict[str, Any]) -> list[Any]:
        return list(self.session.run(self.settings["outputs"], inputs))


def served(folder: Path, source: Artifact, **options: Any) -> Artifact:
    """The repository of a model, run by ONNX Runtime in the Python backend."""
    return run_kind("triton-repo", folder, {"backend": "python", **options}, inputs={"from": source})
