"""Triton's `ModelConfig` protobuf: from options to a message, to text and back, and which server knows which field."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelbuild.errors import problem, suggestion

SINCE: Mapping[str, str] = {
    "ModelConfig.runtime": "24.05",
    "ModelInput.is_non_linear_format_io": "24.10",
    "ModelOutput.is_non_linear_format_io": "24.10",
    "ModelConfig.model_metrics": "24.11",
    "ModelEnsembling.max_inflight_requests": "25.11",
}
"""The first release that knows a field; an older one refuses the whole file. From the schemas of tritonclient 2.41
(23.12) to 2.73, and for the last two from servers."""
_MODULE = "modelbuild.lib._model_config_pb2"


def model_config() -> Any:
    """The class `ModelConfig`, from the schema that tritonclient carries.

    Read from its file: importing it as `tritonclient.grpc.model_config_pb2` would need all of gRPC.
    """
    if _MODULE not in sys.modules:
        found = importlib.util.find_spec("tritonclient")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")
        path = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location(_MODULE, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_MODULE] = module
    return sys.modules[_MODULE].ModelConfig


def merge(config: Any, options: Mapping[str, Any]) -> None:
    """Write options, named as in `config.pbtxt`, into a `ModelConfig`; lists are appended, None is left out.

    `parameters` may be plain `name: value`. A `ProblemError` for a field that does not exist or does not take that.
    """
    from google.protobuf import json_format  # type: ignore[import-untyped]

    for name, value in options.items():
        if value is None:
            continue
        given = {k: {"string_value": text(v)} for k, v in value.items()} if name == "parameters" else value
        try:
            json_format.ParseDict({name: _texts_of_maps(given)}, config)
        except json_format.ParseError as e:
            raise _refused(name, str(e), config) from None


def text(value: Any) -> str:
    """A parameter's value: Triton's are strings, and backends read `1` and `0` for true and false."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _texts_of_maps(value: Any) -> Any:
    """Parameters of accelerators, agents and the like are maps of strings: make their values so."""
    if isinstance(value, Mapping):
        return {
            k: {n: text(p) for n, p in v.items() if not isinstance(p, Mapping)}
            if k == "parameters" and isinstance(v, Mapping)
            else _texts_of_maps(v)
            for k, v in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_texts_of_maps(v) for v in value]
    return value


def _refused(option: str, cause: str, config: Any) -> Exception:
    """The problem that protobuf's words mean."""
    unknown = re.search(r'Message type "inference\.([\w.]+)" has no field named "([^"]+)"(?: at "([^"]+)")?', cause)
    if unknown:
        message, field, where = unknown.groups()
        known = _fields(config.DESCRIPTOR, message)
        place = re.sub(r"^ModelConfig\.?", "", where or "") or message
        return problem(
            f"`{option}` has no field `{field}`",
            at=place,
            fields=", ".join(known),
            hint=suggestion(field, known) or "the fields are those of Triton's `config.pbtxt`",
        )
    enum = re.search(r"Invalid enum value (\S+) for enum type inference\.(\S+?)[.\s]*(?:at \S+)?$", cause)
    if enum:
        return problem(
            f"`{option}` has no value `{enum[1]}`", of=enum[2], hint="values are spelled as in `config.pbtxt`"
        )
    return problem(f"`{option}` is not as Triton has it", cause=" ".join(cause.split())[:300])


def _fields(root: Any, message: str) -> list[str]:
    """The field names of a message type somewhere below `root`."""
    pending, seen = [root], set[str]()
    while pending:
        d = pending.pop()
        if d.full_name in seen:
            continue
        seen.add(d.full_name)
        if d.full_name.removeprefix("inference.") == message:
            return [f.name for f in d.fields]
        pending += [f.message_type for f in d.fields if f.message_type is not None]
    return []


def require_known(config: Any, release: str) -> None:
    """A `ProblemError` when a server of `release` (`24.10`) does not know a field that is used."""
    for path, field in _used(config, ""):
        since = SINCE.get(f"{field.containing_type.name}.{field.name}")
        if since is not None and number(release) < number(since):
            raise problem(
                f"Triton {release} does not know `{path}`",
                known_since=since,
                hint=f'leave it out, or say which server it is for: `triton: "{since}"` or newer',
            )


def number(release: str) -> tuple[int, int]:
    """`24.10` as numbers that compare."""
    year, month = release.split(".")
    return int(year), int(month)


def _used(message: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every field that is set, with its path."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        yield path, field
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _used(value[key], f"{path}.")
            continue
        for one in value if field.is_repeated else (value,):
            yield from _used(one, f"{path}.")


def write(config: Any) -> str:
    """The text of `config.pbtxt`: the same for the same message; maps are sorted."""
    from google.protobuf import text_format

    written: str = text_format.MessageToString(config)
    return written


def parse(written: str, name: str = "config.pbtxt") -> Any:
    """The `ModelConfig` in a `config.pbtxt`; a `ProblemError` with line and column for one that the schema refuses."""
    from google.protobuf import text_format

    config = model_config()()
    try:
        return text_format.Parse(written, config)
    except text_format.ParseError as e:
        place = f"line {e.GetLine()}, column {e.GetColumn()}"
        cause = re.sub(r"^\d+:\d+ : ", "", str(e).replace("\n", " "))
        raise problem(f"`{name}` is not a Triton config", at=place, cause=cause) from None
