"""Requests to models that generate: one reply, or server-sent events, by Triton's generate extension and the protocol.

A request of the extension is a JSON object: `text`, a text or a list of them, and every other key a parameter; or the
parameters in `parameters`. What it gets is the outputs by name: values for one text, lists for several.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from . import measures
from .accounts import Account
from .generating import GeneratingModel, Heard
from .protocol import Arrays, RefusalError
from .settings import Settings

GONE = 499
"""The status logged for a client that has gone; nobody gets it."""


class Generation:
    """How requests to generate are taken, under the server's limits."""

    def __init__(self, settings: Settings, version: str) -> None:
        self.settings, self.version = settings, version

    async def replied(
        self,
        request: Request,
        model: GeneratingModel,
        texts: list[str],
        parameters: Mapping[str, Any],
        account: Account,
    ) -> Arrays:
        """The whole answer. A request whose client goes away is dropped."""
        heard = self._begin(model, texts, parameters, account, streams=False)
        gone = asyncio.ensure_future(request.receive())
        try:
            await self._begun(heard, gone)
            await _first(heard.over, gone)
            if not heard.over.is_set():
                raise ClientDisconnect
            heard.require_done()
            return heard.said.columns(range(len(texts)))
        finally:
            gone.cancel()
            heard.leave()
            account.tokens = heard.tokens

    async def streamed(self, request: Request, model: GeneratingModel, body: bytes, account: Account) -> Response:
        """A reply of server-sent events, one for each piece; `account` is closed when the last is sent."""
        texts, parameters = read(body, account)
        heard = self._begin(model, texts, parameters, account, streams=True)
        gone = asyncio.ensure_future(request.receive())
        try:
            await self._begun(heard, gone)
        except BaseException:
            heard.leave()
            raise
        finally:
            gone.cancel()
        events = self._events(model, heard, account)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def _events(self, model: GeneratingModel, heard: Heard, account: Account) -> AsyncIterator[bytes]:
        status = GONE
        try:
            async for piece in heard.pieces():
                yield _event(self.shown(model, piece, account, alone=True))
            status = 200
        except RefusalError as e:
            status, account.said = e.status, str(e)
            yield _event({"error": str(e)})
        finally:
            heard.leave()
            account.tokens = heard.tokens
            account.close(status)

    def shown(self, model: GeneratingModel, columns: Arrays, account: Account, *, alone: bool) -> dict[str, Any]:
        """An answer as the extension has it: values where there is one text, else lists."""
        found: dict[str, Any] = {"model_name": model.name, "model_version": self.version}
        if account.id is not None:
            found["id"] = account.id
        for name, column in columns.items():
            values = [v.decode() if isinstance(v, bytes) else v for v in column.ravel().tolist()]
            found[name] = values[0] if alone else values
        return found

    def _begin(
        self,
        model: GeneratingModel,
        texts: list[str],
        parameters: Mapping[str, Any],
        account: Account,
        *,
        streams: bool,
    ) -> Heard:
        account.rows = len(texts)
        if len(texts) > self.settings.max_batch_size:
            most = self.settings.max_batch_size
            raise RefusalError(f"the request has {len(texts)} rows, and at most {most} are taken")
        if model.waiting + len(texts) > self.settings.max_queue:
            raise RefusalError("too many requests are waiting; try again later", 503)
        asked = model.asked(texts, parameters)
        measures.TRUNCATED.labels(model.name).inc(sum(p.truncated for p in asked.prompts))
        return model.begin(asked, streams=streams)

    async def _begun(self, heard: Heard, gone: asyncio.Future[Any]) -> None:
        """Wait for the first token; a `RefusalError` where that takes too long."""
        await _first(heard.begun, gone, timeout=self.settings.request_seconds)
        if heard.begun.is_set():
            return
        if gone.done():
            raise ClientDisconnect
        raise RefusalError(f"the request waited more than {self.settings.request_seconds:g} s", 503)


async def _first(event: asyncio.Event, gone: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Return when the event is set or the client has gone, or after so many seconds."""
    waits = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((waits, gone), timeout=timeout, return_when="FIRST_COMPLETED")
    finally:
        waits.cancel()


def read(body: bytes, account: Account) -> tuple[list[str], dict[str, Any]]:
    """The texts and parameters of a request of the extension; a `RefusalError` that says what is wrong with it."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise RefusalError(f"the request is not JSON: {e}") from None
    if not isinstance(asked, dict):
        raise RefusalError("the request is not a JSON object")
    name, texts, more = asked.pop("id", None), asked.pop("text", None), asked.pop("parameters", None)
    if name is not None and not isinstance(name, str):
        raise RefusalError("`id` is not a string")
    account.id = name
    if more is not None and not isinstance(more, dict):
        raise RefusalError("`parameters` is not an object")
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, list) or not given or not all(isinstance(t, str) for t in given):
        raise RefusalError("`text` is missing" if texts is None else "`text` is no text, nor a list of texts")
    return given, {**asked, **(more or {})}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
