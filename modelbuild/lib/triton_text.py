"""Text models as they are built: whether a task can be served from a graph, with which settings, files and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.artifact import Artifact, Component, Tensor
from modelbuild.errors import problem, suggestion
from modelbuild.lib.tokenizing import Tokenizer
from modelbuild.lib.triton_serving import answers, embeddings, entities, labels, tokens

MAX_ANSWER_LENGTH = 15
MAX_STRIDE = 128
"""transformers' defaults of question answering, up to its version 4: tokens of an answer, overlap of windows."""
MOST_SPECIAL = 4
"""Tokens that are added to a pair of texts at most (RoBERTa's; BERT adds 3)."""


class Wanted(msgspec.Struct, frozen=True):
    """What the recipe says of a text model; None is the model's own setting, or the task's usual one."""

    max_length: int | None = None
    buckets: Sequence[int] = ()
    pooling: str | None = None
    normalize: bool | None = None
    aggregation: str = "simple"
    stride: int | None = None
    max_answer_length: int | None = None


def servable(task: str | None) -> bool:
    """Whether a task takes text and gives an answer here."""
    return task in answers.TASKS


def settings(
    source: Artifact, tokenizer: Artifact, wanted: Wanted, *, model: str, rows: int, rows_fixed: bool
) -> dict[str, Any]:
    """`settings.json` of a text model (JSON values): all that `triton_serving` needs beside the tokenizer.

    `model` is the name under which the graph is served; it takes at most `rows` at a time (0: any number), or with
    `rows_fixed` exactly so many. A `ProblemError` when the task, the graph and the tokenizer do not fit together.
    """
    task = source.descriptor.task
    if task is None or task not in answers.TASKS:
        raise problem(
            f"text cannot be served for the task `{task}`" if task else "the model does not say what its task is",
            tasks=", ".join(answers.TASKS),
            hint=(suggestion(task, answers.TASKS) if task else "give the `onnx` target its `task:`")
            or "`text: false` serves the graph alone",
        )
    graph, own = source.descriptor.model(), source.descriptor.settings
    opened = Tokenizer(tokenizer)
    _require_vocabulary(opened, own.get("vocab_size"))
    inputs = _inputs(graph)
    length = _fixed_length(graph)
    least, longest = _of_profiles(own)
    if not opened.padding.found:
        raise problem("the tokenizer has no padding token", hint="texts of one batch could not be of different lengths")
    limit = _max_length(wanted, own, tokenizer.descriptor.settings, longest if length is None else length)
    found = {
        "task": task,
        "model": model,
        "inputs": {t.name: t.dtype for t in inputs},
        "outputs": [t.name for t in _outputs(graph, task)],
        "rows": rows,
        "rows_fixed": rows_fixed,
        "max_length": limit,
        "length": length,
        "least": least,
        "buckets": _buckets(wanted, limit, length),
        "pad_id": opened.padding.token_id,
        "pad_type_id": opened.padding.type_id,
        "pad_left": opened.padding.left,
        "lowercase": opened.lowercase,
        "stride": None,
    }
    return {**found, **_OF_TASK[task](graph, own, wanted, found)}


def files(folder: Path, tokenizer: Artifact, chosen: Mapping[str, Any]) -> None:
    """Write what the text model reads into its version folder, but for the program."""
    text = msgspec.json.format(msgspec.json.encode(chosen, order="sorted"), indent=2)
    (folder / "settings.json").write_bytes(text + b"\n")
    (folder / tokens.FILE).write_bytes((tokenizer.path / tokens.FILE).read_bytes())


def component(chosen: Mapping[str, Any]) -> Component:
    """What clients of the text model send and get, the batch as first dimension."""
    task = answers.TASKS[chosen["task"]]
    fields = (*task.outputs(chosen), *answers.COUNTED)
    outputs = tuple(Tensor(f.name, f.dtype, ("batch", *(d if d > 0 else f.name for d in f.shape))) for f in fields)
    return Component("", tuple(Tensor(name, "string", ("batch", 1)) for name in task.texts), outputs)


def _require_vocabulary(tokenizer: Tokenizer, rows: int | None) -> None:
    if rows is not None and tokenizer.vocab_size > rows:
        raise problem(
            "the tokenizer is not of this model",
            tokenizer=f"token ids up to {tokenizer.vocab_size - 1}",
            model=f"{rows} embeddings",
        )


def _inputs(graph: Component) -> tuple[Tensor, ...]:
    unknown = [t.name for t in graph.inputs if t.name not in tokens.INPUTS or len(t.shape) != 2]
    if unknown or "input_ids" not in [t.name for t in graph.inputs]:
        raise problem(
            "the graph does not take what a tokenizer gives",
            inputs=", ".join(f"{t.name} {list(t.shape)}" for t in graph.inputs),
            known=", ".join(tokens.INPUTS),
            hint="`text: false` serves the graph alone",
        )
    return graph.inputs


def _outputs(graph: Component, task: str) -> tuple[Tensor, ...]:
    """The graph's outputs that the task takes."""
    names, given = answers.TASKS[task].graph, {t.name: t for t in graph.outputs}
    if names is None:
        return graph.outputs[:1]
    if not set(names) <= set(given):
        raise problem(f"`{task}` needs the outputs {', '.join(names)}", outputs=", ".join(given))
    return tuple(given[n] for n in names)


def _fixed_length(graph: Component) -> int | None:
    """The tokens that every row must have, where the graph fixes them."""
    fixed = {t.shape[1] for t in graph.inputs if isinstance(t.shape[1], int)}
    if len(fixed) > 1:
        raise problem("the graph's inputs have different fixed lengths", lengths=", ".join(map(str, fixed)))
    return int(fixed.pop()) if fixed else None


def _of_profiles(own: Mapping[str, Any]) -> tuple[int, int | None]:
    """The least and the most tokens of a row that every optimization profile of a plan takes."""
    shapes = [p["input_ids"] for p in own.get("profiles") or () if "input_ids" in p]
    return max((s["min"][1] for s in shapes), default=1), min((s["max"][1] for s in shapes), default=None)


def _max_length(wanted: Wanted, own: Mapping[str, Any], lent: Mapping[str, Any], length: int | None) -> int | None:
    """Tokens that a text is cut to: the recipe's, else the model's, else the tokenizer's, within the graph's."""
    most = min((n for n in (own.get("max_positions"), length) if n is not None), default=None)
    given = wanted.max_length or own.get("max_length") or lent.get("max_length") or most
    if given is None:
        raise problem("nothing says how many tokens the model takes", hint="give `max_length`")
    if most is not None and given > most:
        if wanted.max_length is None:
            return most
        raise problem(f"`max_length: {given}` is more than the model takes", model=f"{most} tokens")
    return int(given)


def _buckets(wanted: Wanted, limit: int | None, length: int | None) -> list[int]:
    if wanted.buckets and length is not None:
        raise problem("`buckets` are of no use: the graph has a fixed length", length=length)
    buckets = sorted(set(wanted.buckets))
    if buckets and limit is not None and buckets[-1] > limit:
        raise problem(f"the bucket {buckets[-1]} is longer than any text", max_length=limit)
    return [*buckets, limit] if buckets and limit is not None and buckets[-1] < limit else buckets


def _of_embeddings(
    graph: Component, own: Mapping[str, Any], wanted: Wanted, found: Mapping[str, Any]
) -> dict[str, Any]:
    if own.get("modules"):
        raise problem(
            "the model's embeddings need more than its graph has",
            modules=", ".join(own["modules"]),
            hint="`text: false` serves the graph alone",
        )
    output = graph.outputs[0]
    width = output.shape[-1] if isinstance(output.shape[-1], int) else -1
    pooling = wanted.pooling or own.get("pooling")
    if len(output.shape) == 2:
        return {"width": width, "pooling": None, "normalize": _normalize(own, wanted)}
    if len(output.shape) != 3:
        raise problem(f"`{output.name}` is neither token vectors nor embeddings", shape=list(output.shape))
    if pooling is None:
        raise problem(
            "the model does not say how its token vectors become one embedding",
            hint=f"give `pooling`: {', '.join(embeddings.POOLINGS)}",
        )
    unknown = [p for p in pooling.split("+") if p not in embeddings.POOLINGS]
    if unknown:
        raise problem(
            f"the pooling `{unknown[0]}` is not known",
            known=", ".join(embeddings.POOLINGS),
            hint=suggestion(unknown[0], embeddings.POOLINGS),
        )
    width = width * len(pooling.split("+")) if width > 0 else -1
    return {"width": width, "pooling": pooling, "normalize": _normalize(own, wanted)}


def _normalize(own: Mapping[str, Any], wanted: Wanted) -> bool:
    return bool(own.get("normalize")) if wanted.normalize is None else wanted.normalize


def _labels_of(graph: Component, own: Mapping[str, Any], rank: int) -> list[str]:
    """The labels, one for each logit of the graph's first output, which must be of that rank."""
    output = graph.outputs[0]
    names = own.get("labels")
    count = output.shape[-1] if len(output.shape) == rank else None
    if count is None:
        raise problem(
            f"`{output.name}` is not the logits of the task", shape=list(output.shape), expected=f"rank {rank}"
        )
    if not isinstance(names, list):
        raise problem("the model has no labels", hint="its checkpoint's `config.json` needs `id2label`")
    if isinstance(count, int) and count != len(names):
        raise problem("labels and logits do not fit", labels=len(names), logits=count)
    return [str(n) for n in names]


def _of_classes(graph: Component, own: Mapping[str, Any], wanted: Wanted, found: Mapping[str, Any]) -> dict[str, Any]:
    names = _labels_of(graph, own, 2)
    match own.get("problem_type"):
        case "regression":
            function = "none"
        case "multi_label_classification":
            function = "sigmoid"
        case _:
            function = "softmax" if len(names) > 1 else "sigmoid"
    assert function in labels.FUNCTIONS
    return {"labels": names, "scores": function}


def _of_entities(graph: Component, own: Mapping[str, Any], wanted: Wanted, found: Mapping[str, Any]) -> dict[str, Any]:
    if wanted.aggregation not in entities.AGGREGATIONS:
        hint = suggestion(wanted.aggregation, entities.AGGREGATIONS)
        raise problem(
            f"the aggregation `{wanted.aggregation}` is not known", known=", ".join(entities.AGGREGATIONS), hint=hint
        )
    return {"labels": _labels_of(graph, own, 3), "aggregation": wanted.aggregation}


def _of_answers(graph: Component, own: Mapping[str, Any], wanted: Wanted, found: Mapping[str, Any]) -> dict[str, Any]:
    limit = found["max_length"]
    stride = min(limit // 2, MAX_STRIDE) if wanted.stride is None else wanted.stride
    if stride > limit - MOST_SPECIAL - 4:
        raise problem(f"`stride: {stride}` leaves no room for text", max_length=limit)
    return {"stride": stride, "max_answer_length": wanted.max_answer_length or MAX_ANSWER_LENGTH}


_OF_TASK = {
    "feature-extraction": _of_embeddings,
    "text-classification": _of_classes,
    "token-classification": _of_entities,
    "question-answering": _of_answers,
}
