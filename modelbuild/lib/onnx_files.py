"""ONNX files: load, check, describe and save them, with their weights inside or in one file beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from modelbuild.artifact import Component, Tensor
from modelbuild.errors import problem

MODEL = "model.onnx"
DATA_SUFFIX = ".data"
PROTO_LIMIT = 2**31 - 2**26
"""Protobuf refuses messages of 2 GiB: above this many bytes of weights, 64 MiB left to the graph, they go beside."""
SMALL_BYTES = 1024
"""Tensors below this stay in the model file: shapes and axes must be readable without the weights."""
ALIGN = 4096
"""External tensors start at multiples of this (a page), so that ONNX Runtime can map them instead of reading."""


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


def load(path: Path, *, weights: bool = True) -> Any:
    """The `ModelProto` in `path`, with its external weights read in unless told not to.

    A `ProblemError` for a file that is not ONNX, or whose external data is missing or lies outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as e:
        raise _corrupt(path, str(e)) from None
    if not model.ir_version or not model.HasField("graph"):
        raise _corrupt(path, "it holds no graph")
    require_external(model, path)
    if weights:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _corrupt(path: Path, cause: str) -> Exception:
    return problem(
        f"`{path.name}` is not a readable ONNX file",
        file=path,
        size=f"{path.stat().st_size} bytes",
        cause=cause,
        hint="it may be truncated, or a git-lfs pointer in place of the file",
    )


def tensors(model: Any) -> Iterable[Any]:
    """Every `TensorProto` of the model's graphs: initializers, and attributes of nodes, subgraphs included."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def external_files(model: Any) -> dict[str, int]:
    """The files of external data the model names, and how many bytes of each it needs."""
    import onnx

    needed: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
        location = entry.get("location", "")
        needed[location] = max(needed.get(location, 0), end)
    return needed


def require_external(model: Any, path: Path) -> tuple[Path, ...]:
    """The files of external data, each inside the folder of `path` and long enough; else a `ProblemError`."""
    files = []
    for location, size in sorted(external_files(model).items()):
        pure = PurePosixPath(location.replace("\\", "/"))
        if not location or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
            raise problem(
                f"`{path.name}` keeps weights outside its folder",
                location=location or "(empty)",
                hint="save it again with its external data beside it",
            )
        file = path.parent / pure
        if not file.is_file():
            raise problem(f"the weights of `{path.name}` are missing", file=file, hint="put the file beside the model")
        if not file.resolve().is_relative_to(path.parent.resolve()) and not path.is_symlink():
            raise problem(f"`{path.name}` keeps weights outside its folder", location=location, file=file.resolve())
        if file.stat().st_size < size:
            raise problem(
                f"the weights of `{path.name}` are truncated",
                file=file,
                size=f"{file.stat().st_size} bytes",
                needed=f"{size} bytes",
            )
        files.append(file)
    return tuple(files)


def check(path: Path) -> None:
    """onnx.checker's verdict on a model file; a `ProblemError` with its first line when it is against."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as e:
        cause = str(e).strip().splitlines()
        raise problem(
            f"`{path.name}` is not a valid ONNX model", file=path, cause=cause[0] if cause else repr(e)
        ) from e


def component(model: Any, file: str = MODEL) -> Component:
    """What the descriptor says of a graph: inputs and outputs with numpy dtypes and symbolic shapes."""
    stored = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in stored]
    return Component(file, tuple(_tensor(i) for i in inputs), tuple(_tensor(o) for o in model.graph.output))


def _tensor(value: Any) -> Tensor:
    from onnx import helper

    kind = value.type.tensor_type
    if not kind.elem_type:
        return Tensor(value.name, value.type.WhichOneof("value") or "unknown", ())
    dims = []
    for i, dim in enumerate(kind.shape.dim):
        dims.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{i}")
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return Tensor(value.name, "string" if dtype.kind == "O" else str(dtype), tuple(dims))


def opsets(model: Any) -> dict[str, int]:
    """Operator set versions by domain; ONNX's own domain is `ai.onnx`."""
    return {o.domain or "ai.onnx": o.version for o in model.opset_import}


def operators(model: Any) -> dict[str, int]:
    """How often each operator occurs in the main graph, those of other domains as `domain::Op`, sorted by name."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        own = node.domain in ("", "ai.onnx")
        name = node.op_type if own else f"{node.domain}::{node.op_type}"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def clean(model: Any) -> None:
    """Take out what depends on the machine or the tool rather than on the model: paths, stack traces, versions."""
    model.producer_version = ""
    model.doc_string, model.domain = "", ""
    del model.metadata_props[:]
    functions = list(model.functions)
    for function in functions:
        function.doc_string = ""
        del function.metadata_props[:]
    graphs = [model.graph]
    nodes = [n for f in functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            graph.doc_string = ""
            del graph.metadata_props[:]
            for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                value.doc_string = ""
                del value.metadata_props[:]
            nodes.extend(graph.node)
        while nodes:
            node = nodes.pop()
            node.doc_string = ""
            del node.metadata_props[:]
            for attribute in node.attribute:
                attribute.doc_string = ""
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def save(model: Any, path: Path, *, limit: int = PROTO_LIMIT) -> tuple[str, ...]:
    """Write the model, the same bytes for the same model; the names of the files written.

    Weights above `limit` bytes in all go to one file `<name>.data` beside it. The model must hold its weights; those
    that go beside are taken out of `model`.
    """
    stored = [t for t in tensors(model) if t.HasField("raw_data")]
    if sum(len(t.raw_data) for t in stored) <= limit:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return (path.name,)
    data = path.with_name(path.name + DATA_SUFFIX)
    with data.open("wb") as stream:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= SMALL_BYTES:
                _put_beside(tensor, stream, tensor.raw_data, data.name)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return (path.name, data.name)


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
                _put_beside(tensor, stream, _bytes(weight), data.name)
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


_INITIALIZER = 5
"""The number of `GraphProto.initializer` (onnx.proto)."""
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


def _put_beside(tensor: Any, stream: Any, values: Any, name: str) -> None:
    """Write a tensor's bytes to the data file, aligned, and point the tensor at them."""
    from onnx import TensorProto

    stream.write(b"\0" * (-stream.tell() % ALIGN))
    entry = {"location": name, "offset": str(stream.tell()), "length": str(len(values))}
    stream.write(values)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entry.items():
        tensor.external_data.add(key=key, value=value)


def embedding_rows(model: Any) -> int | None:
    """How many token ids the graph has embeddings for: the rows of the table that `input_ids` indexes, if found."""
    rows = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 2}
    ids = {"input_ids"}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in ids:
            ids.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in ids and node.input[0] in rows:
            return int(rows[node.input[0]])
    return None
