"""Weights of an ONNX model that lie in files beside it: which, whether they are whole, and how they are put there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from modelbuild.errors import problem

DATA_SUFFIX = ".data"
PROTO_LIMIT = 2**31 - 2**26
"""Protobuf refuses messages of 2 GiB: above this many bytes of weights, 64 MiB left to the graph, they go beside."""
SMALL_BYTES = 1024
"""Tensors below this stay in the model file: shapes and axes must be readable without the weights."""
ALIGN = 4096
"""External tensors start at multiples of this (a page), so that ONNX Runtime can map them instead of reading."""


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


def put_beside(tensor: Any, stream: Any, values: Any, name: str) -> None:
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
