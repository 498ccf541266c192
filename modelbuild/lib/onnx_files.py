"""ONNX files: load, check, describe and save them, with their weights inside or in one file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelbuild.artifact import Component, Tensor
from modelbuild.errors import problem
from modelbuild.lib.external_data import DATA_SUFFIX, PROTO_LIMIT, SMALL_BYTES, put_beside, require_external, tensors

MODEL = "model.onnx"


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
                put_beside(tensor, stream, tensor.raw_data, data.name)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return (path.name, data.name)


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
