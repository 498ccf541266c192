"""Writes an ONNX file whose weights are still PyTorch's (or anyone's), without ever holding two copies of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from modelbuild.lib.external_data import DATA_SUFFIX, PROTO_LIMIT, SMALL_BYTES, put_beside

_PROTO_TYPES = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "float64": "DOUBLE",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}
_INITIALIZER = 5
"""The number of `GraphProto.initializer` (onnx.proto)."""


class Weight(Protocol):
    """A weight that is made when it is written: its dtype and shape are known before."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def array(self) -> Any:
        """The values as a C-contiguous numpy array."""


def save_with(model: Any, weights: Mapping[str, Weight], path: Path, *, limit: int = PROTO_LIMIT) -> tuple[str, ...]:
    """Write `model` with `weights` as further initializers, one in memory at a time; the names of the files written.

    The weights are streamed into the file in protobuf's wire format (https://protobuf.dev/programming-guides/encoding),
    as fields of the graph that follow its others: building the whole message would hold them twice more.
    """
    from onnx import ModelProto, TensorProto

    if sum(w.nbytes for w in weights.values()) > limit:
        return _save_beside(model, weights, path)
    heads = []
    for name, weight in weights.items():
        data_type = TensorProto.DataType.Value(_PROTO_TYPES[weight.dtype])
        tensor = TensorProto(name=name, data_type=data_type, dims=weight.shape).SerializeToString(deterministic=True)
        head = tensor + _field(TensorProto.RAW_DATA_FIELD_NUMBER, weight.nbytes)
        heads.append(_field(_INITIALIZER, len(head) + weight.nbytes) + head)
    rest = ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    graph = model.graph.SerializeToString(deterministic=True)
    size = len(graph) + sum(len(h) for h in heads) + sum(w.nbytes for w in weights.values())
    with path.open("wb", buffering=1 << 20) as stream:
        stream.write(rest.SerializeToString(deterministic=True))
        stream.write(_field(ModelProto.GRAPH_FIELD_NUMBER, size))
        stream.write(graph)
        for head, weight in zip(heads, weights.values(), strict=True):
            stream.write(head)
            stream.write(_bytes(weight))
    return (path.name,)


def _save_beside(model: Any, weights: Mapping[str, Weight], path: Path) -> tuple[str, ...]:
    from onnx import TensorProto

    data = path.with_name(path.name + DATA_SUFFIX)
    with data.open("wb") as stream:
        for name, weight in weights.items():
            tensor = model.graph.initializer.add()
            tensor.name = name
            tensor.data_type = TensorProto.DataType.Value(_PROTO_TYPES[weight.dtype])
            tensor.dims.extend(weight.shape)
            if weight.nbytes >= SMALL_BYTES:
                put_beside(tensor, stream, _bytes(weight), data.name)
            else:
                tensor.raw_data = bytes(_bytes(weight))
    path.write_bytes(model.SerializeToString(deterministic=True))
    return (path.name, data.name)


def _bytes(weight: Weight) -> memoryview:
    return memoryview(weight.array().reshape(-1).view("uint8"))


def _field(number: int, size: int) -> bytes:
    """The tag and length before `size` bytes of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])
