"""The OpenAPI document: FastAPI's own, with the bodies and errors of our routes.

FastAPI describes a route by its annotations. Our routes read their bodies by the table of fields, so those are added.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel, StrictStr

Media: TypeAlias = Literal["application/json", "text/event-stream", "text/plain"]

_REFERENCE: Final = "#/components/schemas/{model}"


class ErrorFacts(BaseModel):
    """The facts of an error."""

    message: StrictStr
    type: StrictStr
    param: StrictStr | None
    code: StrictStr | None


class ErrorBody(BaseModel):
    """The body of an answer with an error status."""

    error: ErrorFacts


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"description": "The request cannot be served as it is.", "model": ErrorBody},
    "5XX": {"description": "The server failed, is too slow, or shuts down.", "model": ErrorBody},
}
"""The error answers of every route."""


def body_of(model: type[BaseModel] | None) -> dict[str, Any]:
    """Return the part of a route's document with its JSON body; None for any object."""
    schema = {"type": "object"} if model is None else {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def content(*media: Media) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route with status 200, by media type, for the argument `responses` of FastAPI."""
    schemas = {"application/json": {"type": "object"}}
    return {200: {"content": {each: {"schema": schemas.get(each, {"type": "string"})} for each in media}}}


def add_bodies(app: FastAPI, *models: type[BaseModel]) -> None:
    """Add the schemas of bodies to the application's document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        known = document.setdefault("components", {}).setdefault("schemas", {})
        for model in models:
            schema = model.model_json_schema(ref_template=_REFERENCE)
            known.update(schema.pop("$defs", {}))
            known[model.__name__] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
