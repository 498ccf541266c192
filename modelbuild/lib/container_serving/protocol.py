"""The Open Inference Protocol v2 over HTTP: requests to arrays and arrays to replies, as JSON or as binary tensors.

Binary tensors follow the JSON in the body, as the extension of that name says (`Inference-Header-Content-Length`):
little-endian values in row-major order; strings each after its length in 4 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

LENGTH = "inference-header-content-length"
STRINGS = "BYTES"
DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": STRINGS,
}
"""numpy dtype name (`string` for text) -> datatype."""
DTYPES: Mapping[str, np.dtype[Any]] = {t: np.dtype(n).newbyteorder("<") for n, t in DATATYPES.items() if t != STRINGS}
FITTING = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
"""Kind of a dtype -> kinds of JSON values that it takes."""
NOT_HERE = ("shared_memory_region", "shared_memory_byte_size", "classification")

Arrays = dict[str, NDArray[Any]]


class RefusalError(Exception):
    """What the client is told instead of an answer, and the HTTP status."""

    def __init__(self, said: str, status: int = 400) -> None:
        super().__init__(said)
        self.status = status


class Tensor(NamedTuple):
    """An input or output of a model: -1 for sizes that are free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Wanted(NamedTuple):
    """A request: its id, its inputs, the outputs that are asked for (each with whether as binary), its parameters."""

    id: str | None
    inputs: Arrays
    outputs: dict[str, bool]
    parameters: dict[str, Any]


def read(body: bytes, header: str | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Wanted:
    """A request of a model with these inputs and outputs; a `RefusalError` that says what is wrong with it."""
    length = _header_length(header, len(body))
    try:
        asked = orjson.loads(body[:length] if length != len(body) else body)
    except orjson.JSONDecodeError as e:
        raise RefusalError(f"the request is not JSON: {e}") from None
    if not isinstance(asked, dict):
        raise RefusalError("the request is not a JSON object")
    name = asked.get("id")
    if name is not None and not isinstance(name, str):
        raise RefusalError("`id` is not a string")
    found = _inputs(asked, memoryview(body)[length:], {t.name: t for t in inputs})
    parameters = _parameters(asked, "the request")
    as_binary = bool(parameters.pop("binary_data_output", False))
    return Wanted(name, found, _outputs(asked, [t.name for t in outputs], as_binary), parameters)


def _header_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= size):
        raise RefusalError(f"Inference-Header-Content-Length is {header!r}, and the body has {size} bytes")
    return int(header)


def _list(asked: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    given = asked.get(name) or []
    if not isinstance(given, list) or not all(isinstance(g, dict) and isinstance(g.get("name"), str) for g in given):
        raise RefusalError(f"`{name}` is not a list of objects with a `name`")
    return given


def _parameters(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = given.get("parameters") or {}
    if not isinstance(found, dict):
        raise RefusalError(f"the parameters of {what} are not an object")
    for name in NOT_HERE:
        if found.get(name):
            raise RefusalError(f"{what} has the parameter `{name}`, which this server does not offer")
    return found


def _inputs(asked: Mapping[str, Any], binary: memoryview, known: Mapping[str, Tensor]) -> Arrays:
    found: Arrays = {}
    place = 0
    for given in _list(asked, "inputs"):
        name = given["name"]
        if name not in known or name in found:
            raise RefusalError(
                f"input `{name}` is given twice"
                if name in found
                else f"there is no input `{name}`; the inputs are {', '.join(known)}"
            )
        shape = _shape(given, known[name])
        size = _parameters(given, f"input `{name}`").get("binary_data_size")
        if size is None:
            found[name] = _from_json(given.get("data"), shape, known[name])
            continue
        if "data" in given:
            raise RefusalError(f"input `{name}` has both `data` and `binary_data_size`")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0 or place + size > len(binary):
            raise RefusalError(f"input `{name}` says it has {size} bytes; {len(binary) - place} are left in the body")
        found[name] = _from_binary(binary[place : place + size], shape, known[name])
        place += size
    missing = [name for name in known if name not in found]
    if missing:
        raise RefusalError(f"input `{missing[0]}` is missing")
    if place != len(binary):
        raise RefusalError(f"{len(binary) - place} bytes at the end of the body belong to no input")
    return found


def _shape(given: Mapping[str, Any], known: Tensor) -> tuple[int, ...]:
    name, shape = known.name, given.get("shape")
    datatype = given.get("datatype")
    if datatype != known.datatype:
        raise RefusalError(f"input `{name}` has datatype {datatype!r}, and the model takes {known.datatype}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise RefusalError(f"the shape of input `{name}` is not a list of sizes")
    fits = len(shape) == len(known.shape) and all(k in (-1, n) for k, n in zip(known.shape, shape, strict=True))
    column = known.datatype == STRINGS and known.shape == (-1, 1) and len(shape) == 1
    if not (fits or column) or 0 in shape:
        raise RefusalError(f"input `{name}` has shape {shape}, and the model takes {list(known.shape)}")
    return (*shape, 1) if column else tuple(shape)


def _from_json(data: Any, shape: tuple[int, ...], known: Tensor) -> NDArray[Any]:
    if not isinstance(data, list):
        raise RefusalError(f"input `{known.name}` has no `data`")
    count = math.prod(shape)
    if known.datatype == STRINGS:
        texts = list(_flat(data))
        if not all(isinstance(t, str) for t in texts):
            raise RefusalError(f"the data of input `{known.name}` are not all strings")
        _require(len(texts), count, known, shape)
        array = np.empty(count, object)
        array[:] = texts
        return array.reshape(shape)
    dtype = DTYPES[known.datatype]
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):
        raise RefusalError(f"the data of input `{known.name}` are not rows of equal length") from None
    _require(values.size, count, known, shape)
    if values.dtype.kind not in FITTING[dtype.kind] or (values.ndim > 1 and values.shape != shape):
        raise RefusalError(f"the data of input `{known.name}` are not {known.datatype} of shape {list(shape)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise RefusalError(f"the data of input `{known.name}` do not fit {known.datatype}")
    return values.astype(dtype).reshape(shape)


def _flat(data: Iterable[Any]) -> Iterable[Any]:
    for value in data:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _require(size: int, count: int, known: Tensor, shape: tuple[int, ...]) -> None:
    if size != count:
        raise RefusalError(f"input `{known.name}` has {size} values, and its shape {list(shape)} has {count}")


def _from_binary(data: memoryview, shape: tuple[int, ...], known: Tensor) -> NDArray[Any]:
    count = math.prod(shape)
    if known.datatype == STRINGS:
        return _strings(data, count, known, shape)
    dtype = DTYPES[known.datatype]
    if len(data) != count * dtype.itemsize:
        raise RefusalError(
            f"input `{known.name}` has {len(data)} bytes, and {known.datatype} of shape {list(shape)} has "
            f"{count * dtype.itemsize}"
        )
    if dtype.kind == "b":
        return np.frombuffer(data, np.uint8).astype(bool).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def _strings(data: memoryview, count: int, known: Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
    found: list[bytes] = []
    place = 0
    while place < len(data):
        end = place + 4
        if end <= len(data):
            end += int.from_bytes(data[place:end], "little")
        if end > len(data) or end < place + 4:
            raise RefusalError(f"string {len(found)} of input `{known.name}` is cut off")
        found.append(bytes(data[place + 4 : end]))
        place = end
    _require(len(found), count, known, shape)
    array = np.empty(count, object)
    array[:] = found
    return array.reshape(shape)


def _outputs(asked: Mapping[str, Any], known: Sequence[str], usual: bool) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for given in _list(asked, "outputs"):
        if given["name"] not in known:
            raise RefusalError(f"there is no output `{given['name']}`; the outputs are {', '.join(known)}")
        found[given["name"]] = bool(_parameters(given, f"output `{given['name']}`").get("binary_data", usual))
    return found or dict.fromkeys(known, usual)


def reply(model: str, version: str, wanted: Wanted, answer: Mapping[str, NDArray[Any]]) -> tuple[bytes, int | None]:
    """The body of a reply, and the length of its JSON where binary tensors follow it. NaN is null in JSON."""
    said: dict[str, Any] = {"model_name": model, "model_version": version}
    if wanted.id is not None:
        said["id"] = wanted.id
    said["outputs"] = outputs = []
    binary: list[bytes] = []
    for name, as_binary in wanted.outputs.items():
        array = answer[name]
        datatype = STRINGS if array.dtype == object else DATATYPES[array.dtype.name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if as_binary:
            data = _packed(array) if datatype == STRINGS else np.ascontiguousarray(array).tobytes()
            binary.append(data)
            entry["parameters"] = {"binary_data_size": len(data)}
        elif datatype == STRINGS:
            entry["data"] = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.ravel()]
        else:
            entry["data"] = np.ascontiguousarray(array).ravel()
        outputs.append(entry)
    text = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *binary)), len(text)) if binary else (text, None)


def _packed(array: NDArray[Any]) -> bytes:
    values = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel()]
    return b"".join(part for v in values for part in (struct.pack("<I", len(v)), v))
