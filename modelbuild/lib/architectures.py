"""Which transformers class a checkpoint loads as for a task, and which task its config speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelbuild.errors import problem, suggestion
from modelbuild.lib import lean_torch
from modelbuild.lib.export_tasks import TASKS, Task


def task_of(settings: Mapping[str, Any]) -> str:
    """The task that the checkpoint's own files speak of: pooling means embeddings, else the architecture's head.

    A `ProblemError` when the architecture (`config.json`'s first) belongs to no task or there is none.
    """
    if "pooling" in settings:
        return "feature-extraction"
    architecture, model_type = settings.get("architecture") or "", settings["model_type"]
    heads = sorted({h for task in TASKS.values() for h in task.heads if architecture.endswith(h)}, key=len)
    for head in reversed(heads):  # a `GPT2LMHeadModel` is no `Model` like any other
        for name, task in TASKS.items():
            if head in task.heads and _class_name(model_type, task) is not None:
                return name
    raise problem(
        "the checkpoint does not say what it is for",
        architecture=architecture or "none in `config.json`",
        hint=f"say `task:`, one of {', '.join(TASKS)}",
    )


def class_name(model_type: str, name: str) -> str:
    """The transformers class of a model type for the task called `name`; a `ProblemError` when it has none."""
    task = TASKS[name]
    found = _class_name(model_type, task)
    if found is None:
        known = sorted({k for table in task.tables for k in _table(table)})
        fitting = [n for n, t in TASKS.items() if _class_name(model_type, t) is not None]
        raise problem(
            f"the architecture `{model_type}` is not supported for `{name}`",
            supported=f"{', '.join(task.tested)}; others that transformers has with this head are tried",
            tasks_of_this_architecture=", ".join(fitting) or "none",
            hint=suggestion(model_type, known) or "export it elsewhere and adopt the file with `path:`",
        )
    return found


def _class_name(model_type: str, task: Task) -> str | None:
    for table in task.tables:
        found = _table(table).get(model_type)
        if found is None or (not table and _is_image_or_pair(model_type)):
            continue
        return str(found if isinstance(found, str) else found[0])
    return None


def _is_image_or_pair(model_type: str) -> bool:
    """Whether the base model takes images or sound, or an encoder's and a decoder's text: no features of one text."""
    others = ("IMAGE", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION")
    return any(model_type in _table(name) for name in others)


def _table(name: str) -> Mapping[str, Any]:
    tables = lean_torch.import_tables()
    found: Mapping[str, Any] = getattr(tables, f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES")
    return found
