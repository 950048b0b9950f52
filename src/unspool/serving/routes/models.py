"""Routes about the model and the server: names, health, version, metrics, and the tokenizer."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from unspool.serving.errors import ApiError, refused
from unspool.serving.execution.service import Service
from unspool.serving.http.openapi import body_of, content
from unspool.serving.http.security import read_json
from unspool.serving.requests.messages import read_messages
from unspool.text.chat import encode_chat


class TokenizeRequest(BaseModel):
    """A text, or a conversation, to encode."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: StrictBool = True
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(BaseModel):
    """Token ids to decode."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = None
    tokens: list[StrictInt]


BODIES: Final = (TokenizeRequest, DetokenizeRequest)
"""The bodies of these routes, for the OpenAPI document."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="List the models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service, name) for name in service.names]}

    @routes.get("/v1/models/{name:path}", summary="Describe one model")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _card(service, name)

    @routes.get("/health", summary="200 if requests are served")
    async def health() -> Response:
        ready = service.thread.is_alive and not service.admission.closed
        return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)

    @routes.get("/version", summary="The version of the server")
    async def show_version() -> dict[str, str]:
        return {"version": version("unspool")}

    @routes.get("/metrics", summary="Metrics for Prometheus", responses=content("text/plain"), response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @routes.post("/tokenize", summary="Encode a text or a conversation", openapi_extra=body_of(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        body = _read(TokenizeRequest, await request.body())
        return await run_in_threadpool(_tokenize, service, body)

    @routes.post("/detokenize", summary="Decode token ids", openapi_extra=body_of(DetokenizeRequest))
    async def detokenize(request: Request) -> dict[str, str]:
        body = _read(DetokenizeRequest, await request.body())
        size = service.lm.info.vocab_size
        if not all(0 <= token < size for token in body.tokens):
            raise refused("tokens", f"must be token ids from 0 to {size - 1}")
        tokenizer = _tokenizer(service)
        return {"prompt": await run_in_threadpool(tokenizer.decode, body.tokens, skip_special_tokens=False)}

    @routes.get("/tokenizer_info", summary="Special tokens and the chat template")
    async def tokenizer_info() -> dict[str, Any]:
        tokenizer = _tokenizer(service)
        special = {name: _text(getattr(tokenizer, name, None)) for name in _SPECIAL}
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "chat_template": getattr(tokenizer, "chat_template", None),
            "model_max_length": service.lm.info.max_length,
            **special,
        }

    return routes


_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def _text(token: Any) -> str | None:
    return None if token is None else str(token)


def _tokenizer(service: Service) -> Any:
    if service.lm.tokenizer is None:
        raise ApiError(400, "this model lacks a tokenizer", code="no_tokenizer")
    return service.lm.tokenizer


def _card(service: Service, name: str) -> dict[str, Any]:
    """Return the description of a model, with the options that its stored generation config sets."""
    config = service.lm.config
    stored = {key: value for key, value in config.to_dict().items() if key in config.explicit}
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "unspool",
        "root": service.lm.info.name,
        "max_model_len": service.lm.info.max_length,
        "unspool": {"backend": service.lm.info.backend, "generation_config": stored},
    }


def _read(model: type[Any], body: bytes) -> Any:
    """Return a checked body. Raises ApiError: 400 if it does not fit."""
    data = read_json(body)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        raise ApiError(400, f"`{param or 'body'}`: {first['msg']}", param=param, code="invalid_type") from None


def _tokenize(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise refused("prompt", "or `messages` must be given, and not both")
    tokenizer = _tokenizer(service)
    if body.prompt is not None:
        ids = service.encode(body.prompt, add_special_tokens=body.add_special_tokens)
    else:
        ids = list(encode_chat(read_messages(body.messages or []), tokenizer))
    found = {"count": len(ids), "max_model_len": service.lm.info.max_length, "tokens": ids}
    return {**found, "token_strs": [service.texts.text(each) for each in ids]} if body.return_token_strs else found
