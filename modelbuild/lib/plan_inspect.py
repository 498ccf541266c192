"""What only a finished engine on a GPU tells: the layers as TensorRT fused them, and the memory a plan needs."""

from __future__ import annotations

from typing import Any

import msgspec


class Inspected(msgspec.Struct, frozen=True):
    """`layers` as the engine inspector writes them (JSON values); memory in bytes."""

    layers: list[Any]
    device_memory_bytes: int
    streamable_weights_bytes: int


def inspect(trt: Any, engine: Any) -> Inspected:
    """What a deserialized engine says of itself, by the API of TensorRT 10 and of 11."""
    inspector = engine.create_engine_inspector()
    told = msgspec.json.decode(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    memory = getattr(engine, "device_memory_size_v2", None)
    if memory is None:
        memory = engine.device_memory_size
    streamable = getattr(engine, "streamable_weights_size", 0)
    return Inspected(told.get("Layers", []), int(memory), int(streamable))


def load(serialized: bytes) -> Any:
    """The engine of a plan, through Polygraphy: needs the GPU."""
    from polygraphy.backend.trt import EngineFromBytes

    return EngineFromBytes(serialized)()
