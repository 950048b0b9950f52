"""The application: routes, middleware and the form of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from unspool.model import LanguageModel
from unspool.serving.errors import ApiError, api_error
from unspool.serving.execution.service import Service
from unspool.serving.http import docs_page
from unspool.serving.http.http_answers import ClientLeft, EventStream, unless_left
from unspool.serving.http.openapi import ERRORS, add_bodies, body_of, content
from unspool.serving.http.security import Guard, cors_options, read_json
from unspool.serving.http.sse import DONE
from unspool.serving.log import CLIENT_LEFT, RequestLog
from unspool.serving.requests.bodies import read_body
from unspool.serving.requests.fields import body_model
from unspool.serving.routes import models
from unspool.serving.routes.chat import ChatCall
from unspool.serving.routes.completions import CompletionCall
from unspool.serving.routes.responses import ResponseCall
from unspool.serving.settings import Settings

_LOG: Final = logging.getLogger("unspool.server")

Made: TypeAlias = "tuple[CompletionCall | ChatCall | ResponseCall, tuple[str, ...], bytes]"
"""One call, the names of ignored fields, and the bytes after the last event of a stream."""


def create_app(
    lm: LanguageModel, settings: Settings | None = None, *, assistants: Mapping[str, LanguageModel] | None = None
) -> FastAPI:
    """Return the ASGI application that serves a model.

    Args:
        lm: the model.
        settings: limits, names and keys; None for the defaults.
        assistants: name --> draft model that requests can ask for.
    """
    settings = settings or Settings()
    service = Service(lm, settings, assistants)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        try:
            yield
        finally:
            service.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))
            service.thread.stop()

    app = FastAPI(
        title="Unspool", version=version("unspool"), lifespan=lifespan, docs_url=None, redoc_url=None, responses=ERRORS
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origin:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origin))  # type: ignore[arg-type]
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _of_framework)
    app.add_exception_handler(Exception, _unexpected)
    unknown = settings.unknown_fields

    def completion(data: object, salt: str) -> Made:
        body = read_body("completions", data, unknown=unknown)
        return CompletionCall(service, body, salt=salt), body.ignored, DONE

    def chat(data: object, salt: str) -> Made:
        body = read_body("chat", data, unknown=unknown)
        return ChatCall(service, body, salt=salt), body.ignored, DONE

    def response(data: object, salt: str) -> Made:
        if not isinstance(data, dict):
            raise ApiError(400, f"the body must be a JSON object, got {type(data).__name__}")
        call = ResponseCall(service, data, salt=salt, unknown=unknown)
        return call, call.ignored, b""

    completions, chats = body_model("completions"), body_model("chat")
    _add_generation(app, "/v1/completions", completion, "Continue texts or token ids", completions)
    _add_generation(app, "/v1/chat/completions", chat, "Answer a conversation", chats)
    _add_generation(app, "/v1/responses", response, "Answer a conversation, with OpenAI's newer API", None)
    for router in (models.router(service), docs_page.router()):
        app.include_router(router)
    add_bodies(app, completions, chats, *models.BODIES)
    return app


def _add_generation(
    app: FastAPI, path: str, make: Callable[[object, str], Made], summary: str, body: type[BaseModel] | None
) -> None:
    """Add one route that generates text. body: for the OpenAPI document; None for any JSON object."""
    service: Service = app.state.service

    async def endpoint(request: Request) -> Response:
        running, ignored, end = make(read_json(await request.body()), request.state.caller)
        headers = {"x-unspool-ignored": ", ".join(ignored)} if ignored else {}
        log = RequestLog(request.state.request_id, path, running.request)
        try:
            with log.failures():
                await unless_left(request, running.start())
                if running.streams:
                    events = log.following(running.events())
                    return EventStream(events, service.settings.keep_alive, headers, running.request.close, end)
                answer = JSONResponse(await unless_left(request, running.answer()), headers=headers)
        except ClientLeft:
            await running.request.close()
            return Response(status_code=CLIENT_LEFT)
        log.write(200, "answered")
        return answer

    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        name=path,
        responses=content("application/json", "text/event-stream"),
        openapi_extra=body_of(body),
    )


async def _told(request: Request, error: Exception) -> Response:
    told = api_error(error)
    request.app.state.service.metrics.errors.labels(str(told.status)).inc()
    if told.code == "queue_full":
        request.app.state.service.metrics.rejections.inc()
    return JSONResponse(told.body(), told.status, told.headers)


async def _of_framework(request: Request, error: Exception) -> Response:
    """Answer an unknown route or method in the form of all errors."""
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        return JSONResponse(ApiError(error.status_code, message, code="not_found").body(), error.status_code, headers)
    return JSONResponse(ApiError(400, f"the request cannot be read: {error}").body(), 400)


async def _unexpected(request: Request, error: Exception) -> Response:
    _LOG.exception("%s: unexpected fault", getattr(request.state, "request_id", "-"), exc_info=error)
    told = api_error(error)
    return JSONResponse(told.body(), told.status, told.headers)
