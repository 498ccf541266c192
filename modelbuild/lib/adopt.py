"""Finished ONNX files from elsewhere: whether they are whole, stay in their folder, and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelbuild.artifact import Component
from modelbuild.errors import ProblemError, problem
from modelbuild.lib import external_data, onnx_files, sessions

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
BATCH, LENGTH = 2, 8


class Examined(msgspec.Struct, frozen=True):
    """What is known of a file: its graph's inputs and outputs, the files beside it, the rows of its embeddings."""

    component: Component
    beside: tuple[Path, ...]
    rows: int | None


def examine(path: Path, hashed: Sequence[Path]) -> Examined:
    """Look at the graph in `path` without reading the weights beside it, and have it checked.

    A `ProblemError` when the file is corrupt or invalid, or its weights are missing, truncated, outside its folder,
    or not among `hashed` (a change of them would go unnoticed).
    """
    model = onnx_files.load(path, weights=False)
    beside = external_data.require_external(model, path)
    unseen = sorted(set(beside) - set(hashed))
    if unseen:
        raise problem(
            f"the weights of `{path.name}` are in a file that is not watched",
            file=unseen[0].name,
            hint=f"name it `{path.name}.data` and save the model with that location",
        )
    found = Examined(onnx_files.component(model), beside, onnx_files.embedding_rows(model))
    del model  # the checker and ONNX Runtime each read the file for themselves
    onnx_files.check(path)
    if not found.component.outputs:
        raise problem(f"`{path.name}` has no outputs", file=path)
    return found


def try_out(path: Path, component: Component) -> str:
    """Load the model in ONNX Runtime and run it once with made-up inputs; what happened, in a line.

    A `ProblemError` when it does not load, or when it takes plain text inputs and does not run. Inputs of other
    kinds may have conditions that made-up values do not meet: then that is what the line says.
    """
    session = sessions.open_session(path, threads=1, optimize=False)
    sizes: dict[str, int] = {}
    for tensor in component.inputs:
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, str):
                sizes.setdefault(dim, BATCH if axis == 0 else LENGTH)
    try:
        inputs = sessions.random_inputs(component.inputs, sizes)
        with sessions.failures(f"`{path.name}` loads but does not run"):
            outputs = session.run(None, inputs)
    except ProblemError as e:
        if {t.name for t in component.inputs} <= TEXT_INPUTS:
            raise
        return f"loads; made-up inputs do not fit it, so it was not run ({e.problems[0].facts[0][1][:120]})"
    got = ", ".join(f"`{o.name}` {list(v.shape)}" for o, v in zip(component.outputs, outputs, strict=True))
    return f"runs: {got}"
