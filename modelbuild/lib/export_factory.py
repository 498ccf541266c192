"""A plain PyTorch module, made by a function of the user's own code, as a graph.

The function is called `function() -> (module, examples)`; `examples` maps input names, in the order of the module's
arguments, to tensors. Which axes are dynamic is said by names in `shapes`; what that makes of the outputs' axes is seen
by running the module at other sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from modelbuild.errors import problem
from modelbuild.lib import own_code
from modelbuild.lib.export_graph import Case, Graph, Port
from modelbuild.lib.positional import wrapped

Shape: TypeAlias = Sequence[int | str]
RETURNS = "it returns `(module, examples)`: a torch.nn.Module, and a dict of input name to example tensor"
BATCHES = (1, 3)


def load(code: Path, factory: str) -> tuple[Any, dict[str, Any]]:
    """Run the code in `code` (a Python file, or the folder its package lies in) and call `package.module:function`.

    A `ProblemError` when there is no such module or function, it fails, or it returns something else.
    """
    function = own_code.load(code, factory, "factory")
    try:
        result = function()
    except Exception as e:  # anybody's code
        raise own_code.failed(f"the factory `{factory}` failed", code, e) from e
    import torch

    match result:
        case (torch.nn.Module() as made, dict(examples)) if examples:
            wrong = [n for n, t in examples.items() if not (isinstance(n, str) and isinstance(t, torch.Tensor))]
            if not wrong:
                _require_fp32(made)
                return made.eval(), {n: t.detach().cpu().contiguous() for n, t in examples.items()}
    raise problem(f"the factory `{factory}` returned no module with examples", got=type(result).__name__, hint=RETURNS)


def _require_fp32(module: Any) -> None:
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()}
    if kinds - {"float32"}:
        raise problem(
            "the factory's module is not in fp32",
            dtypes=", ".join(sorted(kinds)),
            hint="return it in float32: other precisions are made of the exported model by `fp16` or `int8`",
        )


def put_weights(module: Any, file: Path) -> None:
    """Load a safetensors file into the module; a `ProblemError` unless names and shapes are just the module's."""
    from safetensors.torch import load_file

    from modelbuild.lib import safetensors_files

    safetensors_files.header(file)

    try:
        module.load_state_dict(load_file(str(file)), strict=True)
    except RuntimeError as e:
        cause = [line.strip() for line in str(e).splitlines()][1:3]
        raise problem(f"the weights in `{file.name}` are not of this module", cause=" ".join(cause)[:400]) from e


def graph(
    torch: Any, module: Any, examples: Mapping[str, Any], shapes: Mapping[str, Shape], outputs: Sequence[str]
) -> Graph:
    """The module as the graph `model`.

    `shapes` names the dynamic axes (none given: the first of every input is `batch`); `outputs` names the outputs
    (none given: `output`, or `output_0`, ...). A dimension that follows a dynamic one of the inputs gets its name.
    """
    shapes = _checked(examples, shapes or {n: ("batch", *t.shape[1:]) for n, t in examples.items()})
    sizes = {d: t.shape[i] for n, t in examples.items() for i, d in enumerate(shapes[n]) if isinstance(d, str)}
    forward = wrapped(torch, module, lambda *values: _flat(torch, module(*values)))
    runs = []
    for given in _sizes(sizes):
        feeds = {n: _resized(t, shapes[n], given).numpy() for n, t in examples.items()}
        name = ", ".join(f"{d} {n}" for d, n in given.items()) or "the examples"
        runs.append((given, Case(name, feeds, _run(torch, forward, feeds, name))))
    count = len(runs[0][1].expected)
    names = list(outputs) or (["output"] if count == 1 else [f"output_{i}" for i in range(count)])
    if len(names) != count:
        raise problem(f"`outputs` names {len(names)} outputs, and the module gives {count}")
    ports = tuple(Port(n, {i: d for i, d in enumerate(shapes[n]) if isinstance(d, str)}) for n in examples)
    results = tuple(Port(n, _axes(n, [(g, c.expected[i].shape) for g, c in runs])) for i, n in enumerate(names))
    sample = {n: t.numpy() for n, t in examples.items()}
    return Graph("model", forward, ports, results, sample, tuple(case for _, case in runs))


def _run(torch: Any, forward: Any, feeds: Mapping[str, Any], name: str) -> list[Any]:
    """The module's outputs as numpy arrays; a `ProblemError` when it refuses these inputs."""
    try:
        with torch.inference_mode():
            return [t.numpy() for t in forward(*(torch.from_numpy(v) for v in feeds.values()))]
    except Exception as e:  # anybody's code
        raise problem(
            f"the module does not run with {name}",
            cause=f"{type(e).__name__}: {' '.join(str(e).split())[:400]}",
            hint="write a dimension that cannot vary as its number in `inputs`",
        ) from e


def _checked(examples: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """The shapes; a `ProblemError` unless they are of the examples' inputs, rank and sizes."""
    if set(shapes) != set(examples):
        raise problem(
            "`inputs` and the factory's examples are of different inputs",
            inputs=", ".join(shapes), examples=", ".join(examples),
        )  # fmt: skip
    named: dict[str, int] = {}
    for name, shape in shapes.items():
        real = tuple(examples[name].shape)
        same = len(shape) == len(real) and all(
            (named.setdefault(d, n) if isinstance(d, str) else d) == n for d, n in zip(shape, real, strict=True)
        )
        if not same:
            raise problem(f"the example for `{name}` is of another shape", inputs=list(shape), example=list(real))
    return shapes


def _sizes(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """The examples' own sizes; a batch of 1 and of 3; every other dimension alone twice as long."""
    found = [dict(sizes)]
    found += [{**sizes, "batch": n} for n in BATCHES if "batch" in sizes]
    found += [{**sizes, d: 2 * n} for d, n in sizes.items() if d != "batch"]
    return [a for a, _ in itertools.groupby(found)]


def _resized(tensor: Any, shape: Shape, sizes: Mapping[str, int]) -> Any:
    """The tensor at other sizes, its values repeated."""
    import torch

    for axis, dim in enumerate(shape):
        if isinstance(dim, str):
            tensor = tensor.index_select(axis, torch.arange(sizes[dim]) % tensor.shape[axis])
    return tensor.contiguous()


def _axes(name: str, seen: Sequence[tuple[Mapping[str, int], tuple[int, ...]]]) -> dict[int, str]:
    """The dynamic axes of an output: those whose size is not always the same, named after what they follow."""
    axes = {}
    for axis in range(len(seen[0][1])):
        found = [shape[axis] for _, shape in seen]
        if len(set(found)) == 1:
            continue
        following = [d for d in seen[0][0] if [given[d] for given, _ in seen] == found]
        axes[axis] = following[0] if following else f"{name}_{axis}"
    return axes


def _flat(torch: Any, result: Any) -> tuple[Any, ...]:
    """The tensors of a module's result: one, or a tuple, list or dict of them."""
    parts = tuple(result.values()) if isinstance(result, dict) else result
    parts = tuple(parts) if isinstance(parts, tuple | list) else (parts,)
    if not parts or not all(isinstance(p, torch.Tensor) for p in parts):
        raise TypeError(f"the module returns {type(result).__name__}, not tensors")
    return parts
