"""Models that generate text: one generator under two names, of which one replies and one streams, as on Triton."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..triton_serving.generation import Generator, Job
from ..triton_serving.prompts import Asked, Prompts
from ..triton_serving.said import INDEX, OUTPUTS, Said
from ..triton_serving.steps import Steps
from .protocol import DATATYPES, STRINGS, Arrays, RefusalError, Tensor
from .sessions import opened

STREAM = "_stream"
"""What the name of the model that streams ends in."""


class GeneratingModel:
    """Texts that are gone on from. `streams` tells whether an answer comes in pieces."""

    platform = "modelserver_generation"

    def __init__(self, name: str, prompts: Prompts, generator: Generator, *, streams: bool) -> None:
        self.name, self.streams, self.prompts, self.generator = name, streams, prompts, generator
        self.inputs = [Tensor("text", STRINGS, (-1, 1))]
        outputs = (*OUTPUTS, INDEX) if streams else OUTPUTS
        self.outputs = [Tensor(name, DATATYPES[dtype], (-1, 1)) for name, dtype in outputs]

    @property
    def waiting(self) -> int:
        """Texts that have no place in a batch yet."""
        return len(self.generator.waiting)

    def asked(self, texts: Sequence[str], parameters: Mapping[str, Any]) -> Asked:
        """What a request asks for; a `RefusalError` where it asks wrong."""
        try:
            return self.prompts.asked(list(texts), parameters)
        except ValueError as e:
            raise RefusalError(str(e)) from None

    def begin(self, asked: Asked, *, streams: bool) -> Heard:
        """Start a request, in the event loop that is to hear of it."""
        heard = Heard(Said(asked.prompts), streams=streams)
        self.generator.submit(Job([p.tokens for p in asked.prompts], asked.mosts, asked.wishes, heard))
        return heard


class Heard:
    """What a request hears (see `generation.Listener`): told in the generator's thread, awaited in the event loop."""

    def __init__(self, said: Said, *, streams: bool) -> None:
        self.said, self.streams = said, streams
        self.loop = asyncio.get_running_loop()
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        self.failure: str | None = None
        self.left = False
        self._pieces: asyncio.Queue[Arrays | None] = asyncio.Queue()
        self._noted = False

    def told(self, row: int, text: str, made: int, reason: str) -> None:
        self.said.add(row, text, made, reason)
        if self.streams:
            self._tell(self._take, self.said.piece(row))
        elif not self._noted:
            self._noted = True
            self._tell(self.begun.set)

    def failed(self, cause: str) -> None:
        self.failure = cause
        self._tell(self._end)

    def gone(self) -> bool:
        return self.left

    def ended(self) -> None:
        self._tell(self._end)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self.left = True

    async def pieces(self) -> AsyncIterator[Arrays]:
        """The columns of every piece, as it comes; a `RefusalError` where it ends before its time."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self.require_done()

    def require_done(self) -> None:
        """A `RefusalError` unless every text came to its end."""
        if self.failure is not None or not self.said.done:
            raise RefusalError(self.failure or "the texts did not come to their end", 500)

    @property
    def tokens(self) -> int:
        """New tokens so far."""
        return sum(self.said.made)

    def _tell(self, call: Any, *values: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
            self.loop.call_soon_threadsafe(call, *values)

    def _take(self, piece: Arrays) -> None:
        self.begun.set()
        self._pieces.put_nowait(piece)

    def _end(self) -> None:
        self.begun.set()
        self.over.set()
        self._pieces.put_nowait(None)


def load(folder: Path, told: Mapping[str, Any], device: str, threads: int, slots: int) -> dict[str, GeneratingModel]:
    """The two models of an entry of `server.json`, tried out, for `slots` texts at a time."""
    place = folder / told["folder"]
    settings = {**json.loads((place / "settings.json").read_text(encoding="utf-8")), "slots": slots}
    prompts = Prompts(place, settings)
    steps = Steps(place, settings, lambda file: opened(file, device, threads), ("cuda", 0) if device == "gpu" else None)
    steps.try_out()
    generator = Generator(steps, prompts.rust, settings)
    names = {told["name"]: False, told["name"] + STREAM: True}
    return {name: GeneratingModel(name, prompts, generator, streams=streams) for name, streams in names.items()}
