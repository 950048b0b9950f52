"""The routes of the explorer: the page at /, its files, and JSON below /explore."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from unspool.explorer.calls import read_call, read_prompt
from unspool.explorer.facts import facts
from unspool.explorer.kept_rows import NextTokenReader
from unspool.explorer.live import LiveGeneration
from unspool.explorer.pages import page
from unspool.explorer.positions import allowed_json, distribution_inside, distribution_json
from unspool.explorer.side_by_side import SideBySide
from unspool.explorer.snippets import snippets
from unspool.results.render.web_files import INDEX
from unspool.serving.errors import ApiError, api_errors, too_slow
from unspool.serving.execution.service import OpenRequest, Service
from unspool.serving.http.http_answers import ClientLeft, EventStream, unless_left
from unspool.serving.http.security import read_json
from unspool.serving.log import CLIENT_LEFT, RequestLog
from unspool.text.labels import token_label

Found = TypeVar("Found")


def add_explorer(app: FastAPI) -> None:
    """Add the explorer to an application of `unspool.serving.app.create_app`."""
    service: Service = app.state.service
    reader = NextTokenReader(service.lm)
    threads = ThreadPoolExecutor(service.settings.max_running, "unspool-compare")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file(INDEX)

    @app.get("/explore/web/{path:path}", include_in_schema=False)
    async def file(path: str) -> Response:
        return _file(path)

    @app.get("/explore/facts", summary="The model, the strategies and the option table")
    async def show_facts() -> dict[str, Any]:
        return facts(service)

    @app.post("/explore/next", summary="The distribution of the next token")
    async def next_tokens(request: Request) -> Response:
        data = read_json(await request.body())

        def answer() -> dict[str, Any]:
            call, lm = read_call(data, service, request.state.caller), service.lm
            ids = read_prompt(lm, call.prompt)
            _, found = reader.read(ids, call.salted)
            shown = distribution_json(found, lm.tokenizer, call.limit)
            prompt = [{"token_id": token, "text": token_label(lm.tokenizer, token)} for token in ids]
            return {**shown, "prompt_tokens": prompt, "snippets": snippets(service, call, "next", _address(request))}

        return JSONResponse(await _in_thread(request, service, answer))

    @app.post("/explore/position", summary="The distribution at a position of an output, and the allowed tokens")
    async def position(request: Request) -> Response:
        data = read_json(await request.body())

        def answer() -> dict[str, Any]:
            call, lm = read_call(data, service, request.state.caller), service.lm
            found = distribution_inside(lm, call.prompt, call.tokens, call.salted)
            shown = distribution_json(found, lm.tokenizer, call.limit)
            return {**shown, **allowed_json(found, lm.tokenizer, call.limit)}

        return JSONResponse(await _in_thread(request, service, answer))

    @app.post("/explore/generate", summary="A generation with its trace, streamed")
    async def generate(request: Request) -> Response:
        data = read_json(await request.body())
        with api_errors():
            call = await asyncio.to_thread(read_call, data, service, request.state.caller)
        live = LiveGeneration(service, call, _address(request))
        log = _log(request, live.request)
        try:
            with log.failures():
                await unless_left(request, live.start())
        except ClientLeft:
            await live.request.close()
            return Response(status_code=CLIENT_LEFT)
        return EventStream(log.following(live.events()), service.settings.keep_alive, {}, live.request.close, b"")

    @app.post("/explore/compare", summary="Several strategies on one prompt")
    async def compare(request: Request) -> Response:
        data = read_json(await request.body())
        with api_errors():
            call = await asyncio.to_thread(read_call, data, service, request.state.caller)
        both = SideBySide(service, call, _address(request), threads)
        log = _log(request, both.request)
        try:
            with log.failures():
                answer = JSONResponse(await unless_left(request, both.answer()))
        except ClientLeft:
            return Response(status_code=CLIENT_LEFT)
        finally:
            await both.close()
        log.write(200, "answered")
        return answer


def _log(request: Request, opened: OpenRequest | None = None) -> RequestLog:
    return RequestLog(request.state.request_id, request.url.path, opened)


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _file(path: str) -> Response:
    found = page(path)
    if found is None:
        raise ApiError(404, f"the file {path} of the explorer does not exist", code="not_found")
    return found


async def _in_thread(request: Request, service: Service, work: Callable[[], Found]) -> Found:
    """Run work that needs the model, within the limits of the server. Faults become ApiError."""
    log, seconds = _log(request), service.settings.timeout
    with log.failures():
        try:
            async with asyncio.timeout(seconds), service.admission.room(1):
                found = await asyncio.to_thread(work)
        except TimeoutError:
            raise too_slow(seconds) from None
    log.write(200, "answered")
    return found
