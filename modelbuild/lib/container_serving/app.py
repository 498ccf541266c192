"""The endpoints: health, metadata, inference and metrics, for any ASGI server."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Mapping
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from . import measures, protocol
from .batches import Batches, Job, Ran
from .logs import FIELDS
from .protocol import RefusalError, Wanted
from .served import Model
from .settings import Settings

NAME, VERSION = "modelserver", "1"
LOG = logging.getLogger(NAME)
DISCARDED = 64 * 2**20
"""Bytes of a body that is too large which are still read, so that its sender gets to read why."""
WINDOW = {"gzip": 31, "deflate": 15}
"""`Content-Encoding` -> zlib's `wbits`."""
GONE = 499
"""The status logged for a client that has gone; nobody gets it."""


class Endpoints:
    """The models with their queues. `told` is `server.json`."""

    def __init__(self, models: Mapping[str, Model], settings: Settings, told: Mapping[str, Any], workers: int) -> None:
        self.models, self.settings, self.told = models, settings, told
        self.batches = {
            name: Batches(
                model.run,
                workers=workers,
                max_rows=settings.max_batch_size,
                max_queue=settings.max_queue,
            )
            for name, model in models.items()
        }
        for name, batches in self.batches.items():
            measures.WAITING.labels(name).set_function(lambda waiting=batches: waiting.rows)  # type: ignore[misc]

    def app(self) -> Starlette:
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        routes = [
            Route("/v2/health/live", self.ready),
            Route("/v2/health/ready", self.ready),
            Route("/v2", self.server),
            Route("/metrics", self.metrics),
            *(Route(path, self.metadata) for path in (model, version)),
            *(Route(path + "/ready", self.model_ready) for path in (model, version)),
            *(Route(path + "/infer", self.infer, methods=["POST"]) for path in (model, version)),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _said, Exception: _failed})

    def close(self) -> None:
        for batches in self.batches.values():
            batches.close()

    async def ready(self, request: Request) -> Response:
        """Requests are taken only once every model is loaded, so that being live is being ready."""
        return Response(status_code=200)

    async def server(self, request: Request) -> Response:
        return _json({"name": NAME, "version": self.told["version"], "extensions": ["binary_tensor_data"]})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def model_ready(self, request: Request) -> Response:
        self._model(request)
        return Response(status_code=200)

    async def metadata(self, request: Request) -> Response:
        model = self._model(request)
        tensors = {"inputs": model.inputs, "outputs": model.outputs}
        shown = {key: [t._asdict() for t in found] for key, found in tensors.items()}
        return _json({"name": model.name, "versions": [VERSION], "platform": model.platform, **shown})

    async def infer(self, request: Request) -> Response:
        """One request: read, checked, run in a batch with others, answered."""
        started = time.perf_counter()
        name = str(request.path_params["model"])
        label = name if name in self.models else "unknown"
        rows, batch, wanted = 0, 0, None
        said = ""
        try:
            model = self._model(request)
            body = await self._body(request)
            wanted = protocol.read(body, request.headers.get(protocol.LENGTH), model.inputs, model.outputs)
            rows = model.rows(wanted.inputs)
            if rows > self.settings.max_batch_size:
                raise RefusalError(f"the request has {rows} rows, and at most {self.settings.max_batch_size} are taken")
            ran = await self._ran(request, name, wanted, rows, model)
            response = self._answer(name, wanted, ran)
            batch = ran.rows
        except (RefusalError, HTTPException) as e:
            status, said = (e.status, str(e)) if isinstance(e, RefusalError) else (e.status_code, e.detail)
            response = _json({"error": said}, status)
            if status in (408, 413, GONE):
                response.headers["connection"] = "close"
        except ClientDisconnect:
            response, said = Response(status_code=GONE), "the client has gone"
        took = time.perf_counter() - started
        measures.REQUESTS.labels(label, response.status_code).inc()
        measures.LATENCY.labels(label).observe(took)
        if batch:
            measures.INFERRED.labels(label).inc(rows)
            measures.BATCH.labels(label).observe(batch)
        if self.settings.log_requests:
            fields: dict[str, Any] = {"model": name[:200], "status": response.status_code, "ms": round(took * 1000, 3)}
            fields |= {"rows": rows, "batch": batch} if batch else {"error": said}
            if wanted is not None and wanted.id is not None:
                fields["id"] = wanted.id[:200]
            LOG.info("infer", extra={FIELDS: fields})
        return response

    def _model(self, request: Request) -> Model:
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if name not in self.models:
            raise HTTPException(404, f"there is no model `{name}`; the models are {', '.join(self.models)}")
        if version != VERSION:
            raise HTTPException(404, f"model `{name}` has no version `{version}`, but {VERSION}")
        return self.models[name]

    async def _body(self, request: Request) -> bytes:
        """The request's body, unpacked; a `RefusalError` for one that is too large or too slow."""
        most = self.settings.max_body_bytes
        parts: list[bytes] = []
        size = 0
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > most and "expect" in request.headers:
            raise RefusalError(f"the body has {said} bytes, and at most {most} are taken", 413)
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > most + DISCARDED:
                        break
        except TimeoutError:
            raise RefusalError(f"the body did not come in {self.settings.request_seconds:g} s", 408) from None
        if size > most:
            raise RefusalError(f"the body has more than the {most} bytes that are taken", 413)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        coding = request.headers.get("content-encoding", "identity")
        return body if coding == "identity" else _unpacked(body, coding, most)

    async def _ran(self, request: Request, name: str, wanted: Wanted, rows: int, model: Model) -> Ran:
        """The request's turn in a batch. One whose client goes away meanwhile is dropped."""
        batches = self.batches[name]
        job = batches.put(wanted.inputs, rows, model.like(wanted.inputs))
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((job.future, gone), timeout=self.settings.request_seconds, return_when="FIRST_COMPLETED")
            if job.future.done():
                return job.future.result()
        finally:
            gone.cancel()
            self._drop(batches, job)
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect
        raise RefusalError(f"the request waited more than {self.settings.request_seconds:g} s", 503)

    def _drop(self, batches: Batches, job: Job) -> None:
        if not job.future.done():
            batches.drop(job)

    def _answer(self, name: str, wanted: Wanted, ran: Ran) -> Response:
        if ran.answer is None:
            raise _blamed(ran.error)
        if "truncated" in ran.answer:
            measures.TRUNCATED.labels(name).inc(int(ran.answer["truncated"].sum()))
        body, length = protocol.reply(name, VERSION, wanted, ran.answer)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {protocol.LENGTH: str(length)}
        return Response(body, media_type="application/octet-stream", headers=headers)


def _unpacked(body: bytes, coding: str, most: int) -> bytes:
    if coding not in WINDOW:
        raise RefusalError(f"the content encoding `{coding[:40]}` is not known; known are {', '.join(WINDOW)}", 415)
    unpacking = zlib.decompressobj(WINDOW[coding])
    try:
        found = unpacking.decompress(body, most)
    except zlib.error as e:
        raise RefusalError(f"the body is not {coding}: {e}") from None
    if unpacking.unconsumed_tail:
        raise RefusalError(f"the body has more than the {most} bytes that are taken", 413)
    if not unpacking.eof:
        raise RefusalError(f"the body is not {coding}: it is cut off")
    return found


def _blamed(error: Exception | None) -> RefusalError:
    """What a failure is to the client: its own fault where ONNX Runtime finds fault with the values, else ours."""
    if isinstance(error, RefusalError):
        return error
    if type(error).__name__ in ("InvalidArgument", "RuntimeException"):
        return RefusalError(f"the model does not take these values: {' '.join(str(error).split())[:400]}")
    LOG.error("the model failed", exc_info=error)
    return RefusalError("the model failed; the log tells why", 500)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": "the server failed; the log tells why"}, 500)
