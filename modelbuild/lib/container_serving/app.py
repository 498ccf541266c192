"""The endpoints: health, metadata, inference and metrics, for any ASGI server."""

from __future__ import annotations

import asyncio
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

from ..triton_serving.strings import decoded
from . import generate, measures, protocol
from .accounts import LOG, NAME, Account
from .batches import Batches, Job, Ran
from .generate import GONE, Generation
from .generating import GeneratingModel
from .protocol import RefusalError, Wanted
from .served import GraphModel, Model, TextModel
from .settings import Settings

VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "generate"]
DISCARDED = 64 * 2**20
"""Bytes of a body that is too large which are still read, so that its sender gets to read why."""
WINDOW = {"gzip": 31, "deflate": 15}
"""`Content-Encoding` -> zlib's `wbits`."""
FAILURES = (RefusalError, HTTPException, ClientDisconnect)
"""What a request may end in instead of an answer."""


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
            if not isinstance(model, GeneratingModel)
        }
        self.generation = Generation(settings, VERSION)
        self.generators = {name: m for name, m in models.items() if isinstance(m, GeneratingModel) and not m.streams}
        for name, batches in self.batches.items():
            measures.WAITING.labels(name).set_function(lambda waiting=batches: waiting.rows)  # type: ignore[misc]
        for name, generator in self.generators.items():
            measures.WAITING.labels(name).set_function(lambda asked=generator: asked.waiting)  # type: ignore[misc]

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
            *(Route(path + "/generate", self.generate, methods=["POST"]) for path in (model, version)),
            *(Route(path + "/generate_stream", self.generate_stream, methods=["POST"]) for path in (model, version)),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _said, Exception: _failed})

    def close(self) -> None:
        for batches in self.batches.values():
            batches.close()
        for model in self.generators.values():
            model.generator.stop()

    async def ready(self, request: Request) -> Response:
        """Requests are taken only once every model is loaded, so that being live is being ready."""
        return Response(status_code=200)

    async def server(self, request: Request) -> Response:
        return _json({"name": NAME, "version": self.told["version"], "extensions": EXTENSIONS})

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
        account = self._account("infer", request)
        try:
            model = self._model(request)
            body = await self._body(request)
            wanted = protocol.read(body, request.headers.get(protocol.LENGTH), model.inputs, model.outputs)
            account.id = wanted.id
            response = await self._inferred(request, model, wanted, account)
        except FAILURES as e:
            response = _refused(e, account)
        account.close(response.status_code)
        return response

    async def generate(self, request: Request) -> Response:
        """A request to generate, by Triton's extension: one reply."""
        account = self._account("generate", request)
        try:
            model = self._generating(request, streams=False)
            texts, parameters = generate.read(await self._body(request), account)
            columns = await self.generation.replied(request, model, texts, parameters, account)
            response = _json(self.generation.shown(model, columns, account, alone=len(texts) == 1))
        except FAILURES as e:
            response = _refused(e, account)
        account.close(response.status_code)
        return response

    async def generate_stream(self, request: Request) -> Response:
        """A request to generate, by Triton's extension: an event for every piece."""
        account = self._account("generate_stream", request)
        try:
            model = self._generating(request, streams=True)
            return await self.generation.streamed(request, model, await self._body(request), account)
        except FAILURES as e:
            response = _refused(e, account)
        account.close(response.status_code)
        return response

    def _account(self, verb: str, request: Request) -> Account:
        name = str(request.path_params["model"])
        return Account(verb, name, known=name in self.models, logged=self.settings.log_requests)

    async def _inferred(self, request: Request, model: Model, wanted: Wanted, account: Account) -> Response:
        if isinstance(model, GeneratingModel):
            if model.streams:
                raise RefusalError(f"`{model.name}` answers in pieces: ask it by `generate_stream`")
            texts = _texts(wanted.inputs["text"])
            answer = await self.generation.replied(request, model, texts, wanted.parameters, account)
            return _answer(model.name, wanted, answer)
        rows = account.rows = model.rows(wanted.inputs)
        if rows > self.settings.max_batch_size:
            raise RefusalError(f"the request has {rows} rows, and at most {self.settings.max_batch_size} are taken")
        ran = await self._ran(request, model.name, wanted, rows, model)
        if ran.answer is None:
            raise _blamed(ran.error)
        account.batch = ran.rows
        if "truncated" in ran.answer:
            measures.TRUNCATED.labels(model.name).inc(int(ran.answer["truncated"].sum()))
        return _answer(model.name, wanted, ran.answer)

    def _generating(self, request: Request, *, streams: bool) -> GeneratingModel:
        model = self._model(request)
        if not isinstance(model, GeneratingModel):
            raise RefusalError(f"`{model.name}` does not generate: ask it by `infer`")
        if model.streams and not streams:
            raise RefusalError(f"`{model.name}` answers in pieces: ask it by `generate_stream`")
        return model

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

    async def _ran(self, request: Request, name: str, wanted: Wanted, rows: int, model: GraphModel | TextModel) -> Ran:
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


def _answer(name: str, wanted: Wanted, answer: Mapping[str, Any]) -> Response:
    body, length = protocol.reply(name, VERSION, wanted, answer)
    if length is None:
        return Response(body, media_type="application/json")
    headers = {protocol.LENGTH: str(length)}
    return Response(body, media_type="application/octet-stream", headers=headers)


def _texts(array: Any) -> list[str]:
    try:
        return decoded(array, "text")
    except ValueError as e:
        raise RefusalError(str(e)) from None


def _refused(error: Exception, account: Account) -> Response:
    """What a request that is not answered gets instead, noted in its account."""
    if isinstance(error, ClientDisconnect):
        account.said = "the client has gone"
        return Response(status_code=GONE)
    if isinstance(error, RefusalError):
        status, account.said = error.status, str(error)
    else:
        assert isinstance(error, HTTPException)
        status, account.said = error.status_code, error.detail
    response = _json({"error": account.said}, status)
    if status in (408, 413):
        response.headers["connection"] = "close"
    return response


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
