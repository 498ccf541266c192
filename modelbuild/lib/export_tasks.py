"""What can be exported: for each task, which transformers classes it loads and what their graphs give.

A further task is one entry of `TASKS`; a further architecture is one entry of a task's `models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from modelbuild.errors import problem, suggestion

Exporter: TypeAlias = Literal["torchscript", "dynamo"]
DEFAULT_OPSET: Mapping[Exporter, int] = {"torchscript": 17, "dynamo": 20}
OPSETS: Mapping[Exporter, tuple[int, int]] = {"torchscript": (14, 20), "dynamo": (18, 23)}
"""What each exporter can write, and ONNX Runtime's fusions can read."""


class Output(msgspec.Struct, frozen=True):
    """An output of a task's graph: the attribute of the model's result, and its dynamic axes."""

    name: str
    axes: Mapping[int, str]


class Task(msgspec.Struct, frozen=True):
    """How a task's models are loaded (model type -> transformers class) and what their graphs give."""

    models: Mapping[str, str]
    outputs: tuple[Output, ...]
    without: Mapping[str, Any] = {}
    """Constructor arguments that leave out what the outputs do not need, for the classes that know them."""


TASKS: Mapping[str, Task] = {
    "feature-extraction": Task(
        models={
            "albert": "AlbertModel",
            "bert": "BertModel",
            "camembert": "CamembertModel",
            "distilbert": "DistilBertModel",
            "electra": "ElectraModel",
            "mpnet": "MPNetModel",
            "roberta": "RobertaModel",
            "xlm-roberta": "XLMRobertaModel",
        },
        outputs=(Output("last_hidden_state", {0: "batch", 1: "sequence"}),),
        without={"add_pooling_layer": False},
    ),
}


def require_supported(model_type: str, task: str) -> None:
    """A `ProblemError` unless the task knows this model type; needs no heavy import."""
    models = TASKS[task].models
    if model_type not in models:
        raise problem(
            f"the architecture `{model_type}` is not supported for `{task}`",
            supported=", ".join(models),
            hint=suggestion(model_type, models) or "export it elsewhere and adopt the file with `path:`",
        )
