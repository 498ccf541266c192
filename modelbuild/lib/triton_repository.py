"""The files of a model repository beside the graph: configs, programs for the Python backend, labels, warm-up data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from modelbuild.artifact import Tensor
from modelbuild.errors import problem
from modelbuild.lib import triton_schema, triton_serving
from modelbuild.lib.triton_lint import CONFIG
from modelbuild.lib.triton_serving import (
    answers,
    choosing,
    embeddings,
    entities,
    generation,
    graph_model,
    labels,
    pieces,
    prompts,
    reply_model,
    said,
    spans,
    steps,
    stream_model,
    strings,
    text_answers,
    text_model,
    tokens,
    wishes,
)

TEXT_ANSWERS = (tokens, answers, embeddings, labels, entities, spans)
"""What `text_answers` needs."""
GENERATES = (prompts, wishes, generation, steps, choosing, pieces, said)
"""What `generation` needs, beside `tokens`."""
PROGRAMS: Mapping[type[Any], tuple[ModuleType, ...]] = {
    text_model.TextModel: (triton_serving, text_model, text_answers, strings, *TEXT_ANSWERS),
    graph_model.GraphModel: (triton_serving, graph_model),
    stream_model.StreamModel: (
        *(triton_serving, stream_model, graph_model, tokens, strings),
        *GENERATES,
    ),
    reply_model.ReplyModel: (triton_serving, reply_model, wishes),
}
"""What runs in the server -> the modules that it needs, itself the second."""
LABELS = "labels.txt"
LAST_OF_NUMPY_1 = (24, 10)
DEFAULT_SIZE = 16
"""What a dynamic dimension (not the batch) is in warm-up where the recipe names no size."""


def write_requirements(folder: Path, packages: Mapping[str, str], release: str, *, gpu: bool = False) -> None:
    """Write what a server needs to have installed, `requirements.txt`, if anything; `packages` maps to our extras.

    Versions are those here, but for numpy: the stubs of servers up to 24.10 need one below 2. With `gpu` ONNX Runtime
    is the package for GPUs, of the same version.
    """
    lines = []
    for package, extra in sorted(packages.items()):
        if package == "numpy":
            lines.append("numpy>=1.26,<2" if triton_schema.number(release) <= LAST_OF_NUMPY_1 else "numpy>=1.26")
            continue
        try:
            found = metadata.version(package)
            lines.append(f"{package}-gpu=={found}" if gpu and package == "onnxruntime" else f"{package}=={found}")
        except metadata.PackageNotFoundError:
            hint = f"pip install 'modelbuild[{extra}]'"
            raise problem(f"the package `{package}` is not installed", hint=hint) from None
    if lines:
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))


def write_config(folder: Path, config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(triton_schema.write(config), encoding="utf-8")


def write_program(version: Path, program: type[Any]) -> None:
    """Put a program of ours into a version folder: `model.py`, which Triton imports, and the package `serving`."""
    package = version / "serving"
    package.mkdir(parents=True, exist_ok=True)
    for module in PROGRAMS[program]:
        assert module.__file__ is not None
        source = Path(module.__file__)
        (package / source.name).write_bytes(source.read_bytes())
    own = PROGRAMS[program][1]
    said = (own.__doc__ or "").partition("\n")[0]
    line = (
        f"from serving.{own.__name__.rpartition('.')[2]} import {program.__name__} as TritonPythonModel  # noqa: F401"
    )
    (version / "model.py").write_text(f'"""{said}"""\n\n{line}\n', encoding="utf-8")


def write_labels(folder: Path, names: Sequence[str]) -> str:
    """Write the labels, one a line, for clients that ask for the best classes; the file's name."""
    broken = [label for label in names if "\n" in label or not label]
    if broken:
        raise problem("a label does not fit on one line", label=repr(broken[0]))
    (folder / LABELS).write_text("".join(f"{label}\n" for label in names), encoding="utf-8")
    return LABELS


def add_warmup(folder: Path, config: Any, tensors: Sequence[Tensor], samples: Sequence[Mapping[str, Any]]) -> None:
    """Add warm-up requests to a config. A sample without `inputs` gets all of them made up.

    `sizes` gives the dynamic dimensions by their names in the descriptor. Made-up inputs are zeros, but for masks,
    which are ones (from a file in `warmup/`).
    """
    for i, sample in enumerate(samples):
        fields = {"name": f"warmup-{i + 1}", "batch_size": 1, **{k: v for k, v in sample.items() if k != "sizes"}}
        triton_schema.merge(config, {"model_warmup": [fields]})
        if "inputs" in sample:
            continue
        sizes = dict(sample.get("sizes", {}))
        named = {d for t in tensors for d in t.shape if isinstance(d, str)}
        unknown = sorted(set(sizes) - named)
        if unknown:
            raise problem(f"the graph has no dimension `{unknown[0]}`", dimensions=", ".join(sorted(named)) or "none")
        for field in config.input:
            _make_up(folder, config.model_warmup[-1], field, tensors, sizes)


def _make_up(folder: Path, sample: Any, field: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
    import numpy as np

    tensor = next(t for t in tensors if t.name == field.name)
    shape = tensor.shape[len(tensor.shape) - len(field.dims) :] if not field.HasField("reshape") else (1,)
    dims = [d if isinstance(d, int) else int(sizes.get(d, DEFAULT_SIZE)) for d in shape]
    made = sample.inputs[field.name]
    made.data_type = field.data_type
    made.dims.extend(dims)
    if "mask" not in tensor.name or tensor.dtype == "string":
        made.zero_data = True
        return
    made.input_data_file = f"{sample.name}-{tensor.name}"
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / made.input_data_file).write_bytes(np.ones(dims, tensor.dtype).tobytes())
