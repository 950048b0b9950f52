"""The guard in front of the routes: keys, Host and Content-Type headers, and the size of bodies.

A web page can send a body of plain text to a server on localhost without asking, and DNS rebinding reaches every
route. So both headers are checked, besides CORS.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from hmac import compare_digest
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unspool.serving.errors import ApiError
from unspool.serving.http import docs_page
from unspool.serving.http.listening import url_host
from unspool.serving.settings import Settings

_PUBLIC: Final = frozenset({"/health", "/", *docs_page.PATHS})
_PUBLIC_FOLDER: Final = "/explore/web/"
"""Routes without a key: they tell nothing about the model. The explorer's page asks its user for the key."""

KEY_VARIABLE: Final = "UNSPOOL_API_KEY"
"""Environment variable that stands for the API key in lines to copy; the server itself does not read it."""

_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")
_REQUEST_ID: Final = re.compile(r"[\w.:-]{1,128}")


class Guard:
    """ASGI middleware that turns away requests before they are read.

    It gives each request an id (`request.state.request_id`), and a text that identifies its API key
    (`request.state.caller`), "" without keys.

    Args:
        app: the application.
        settings: keys, hosts and limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._limit = settings.max_body_bytes
        self._keys = [_digest(key) for key in settings.api_key]
        self._hosts = {*_LOCAL, url_host(settings.host), *settings.allowed_host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        scope.setdefault("state", {}).update(request_id=request_id, caller="")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._check(scope, headers)
            body = await self._read(headers, receive) if scope["method"] in ("POST", "PUT", "PATCH") else None
        except ApiError as error:
            answer = JSONResponse(error.body(), error.status, error.headers)
            await answer(scope, receive, send_with_id)
            return
        await self._app(scope, receive if body is None else _replayed(body, receive), send_with_id)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            raise ApiError(
                403, f"the Host header names {host!r}; allow it with --allowed-host {host}", code="host_not_allowed"
            )
        if scope["method"] == "OPTIONS" or _is_public(scope["path"]):
            return
        if self._keys:
            digest = _digest(_key(headers))
            if not self._is_known(digest):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
            scope["state"]["caller"] = digest.hex()
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the Content-Type must be application/json, got {kind or 'none'}")

    def _is_known(self, digest: bytes) -> bool:
        """Return whether a key is one of the server's. Every key is compared, so the time tells nothing."""
        return bool(sum([compare_digest(digest, known) for known in self._keys]))

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client left before its body was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limit} bytes, the limit of this server")


def _is_public(path: str) -> bool:
    return path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that gives the body once, and later messages after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")


def read_json(body: bytes) -> object:
    """Return the JSON value of a body.

    Raises:
        ApiError: 400 if it is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def cors_options(origins: Sequence[str]) -> dict[str, object]:
    """Return the options of Starlette's CORS middleware."""
    return {"allow_origins": list(origins), "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
