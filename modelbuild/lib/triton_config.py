"""The `ModelConfig` of one graph: its inputs and outputs in Triton's terms, and whether it has a batch dimension."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from modelbuild.artifact import Component, Tensor
from modelbuild.errors import problem
from modelbuild.lib import triton_schema

TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}
"""numpy dtype name -> `DataType`."""


class Batch(msgspec.Struct, frozen=True):
    """What the first dimension of a graph is: `dynamic` (a batch), or else `why` not; `fixed` is its size if fixed."""

    dynamic: bool
    fixed: int | None = None
    why: str = ""


def batch(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Batch:
    """A batch dimension is the first of every input and output, symbolic, and of one name in the inputs.

    An output's may have a name made up for it (`<output>_0`, see `onnx_files.component`).
    """
    tensors = [*inputs, *outputs]
    scalars = [t.name for t in tensors if not t.shape]
    if not inputs or scalars:
        return Batch(False, why=f"`{scalars[0]}` has no dimensions" if scalars else "the graph has no inputs")
    sizes = {t.shape[0] for t in tensors if isinstance(t.shape[0], int)}
    if sizes:
        fixed = next(iter(sizes)) if len(sizes) == 1 and all(isinstance(t.shape[0], int) for t in tensors) else None
        name = next(t for t in tensors if isinstance(t.shape[0], int))
        return Batch(False, int(fixed) if fixed is not None else None, f"`{name.name}` is fixed to {list(name.shape)}")
    names = {str(t.shape[0]) for t in inputs}
    if len(names) > 1:
        return Batch(False, why=f"the inputs' first dimensions are {', '.join(sorted(names))}")
    for t in outputs:
        if t.shape[0] not in (*names, f"{t.name}_0"):
            return Batch(False, why=f"the output `{t.name}` has the first dimension {t.shape[0]}, not {names.pop()}")
    return Batch(True)


def new(name: str, backend: str, component: Component, max_batch_size: int, *, without: Collection[str] = ()) -> Any:
    """A `ModelConfig` with a graph's inputs and outputs, but for those in `without` (they come from sequence batching).

    With `max_batch_size` above 0 the first dimension is left out, as Triton wants it.
    """
    config = triton_schema.model_config()(name=name, backend=backend, max_batch_size=max_batch_size)
    for tensor in component.inputs:
        if tensor.name not in without:
            _write(config.input.add(), tensor, max_batch_size > 0)
    for tensor in component.outputs:
        if tensor.name not in without:
            _write(config.output.add(), tensor, max_batch_size > 0)
    return config


def _write(field: Any, tensor: Tensor, batched: bool) -> None:
    if tensor.dtype not in TYPES:
        raise problem(f"Triton has no data type for `{tensor.name}`", dtype=tensor.dtype, triton_has=", ".join(TYPES))
    dims = [d if isinstance(d, int) else -1 for d in (tensor.shape[1:] if batched else tensor.shape)]
    field.name = tensor.name
    field.data_type = (
        type(field).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[TYPES[tensor.dtype]].number
    )
    if not dims:
        # Triton refuses empty dims: clients see one element, the graph gets none.
        field.dims.append(1)
        field.reshape.SetInParent()
        return
    field.dims.extend(dims)
