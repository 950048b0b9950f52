"""Reads request bodies by the table of fields: unknown fields, nulls, neutral values and types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from unspool.serving.errors import ApiError
from unspool.serving.requests.fields import Route, body_model, fields_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A checked request body.

    given: the fields that ask for something, with checked types. ignored: names of unknown fields.
    """

    route: Route
    given: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value; `default` if it asks for nothing."""
        return self.given.get(name, default)


def read_body(route: Route, data: Any, *, unknown: Literal["error", "warn"]) -> Body:
    """Check a JSON value, and return its fields without nulls, neutral values and inert fields.

    Args:
        unknown: "error" refuses unknown fields; "warn" lists them as ignored.

    Raises:
        ApiError: 400, with the field's path as `param`.
    """
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(data).__name__}")
    table = fields_of(route)
    data = {name: value for name, value in data.items() if value is not None}
    strange = [name for name in data if name not in table]
    if strange and unknown == "error":
        raise _unknown(strange[0], list(table))
    asked = {name: value for name, value in data.items() if name in table and table[name].source != "inert"}
    try:
        read = body_model(route).model_validate(asked)
    except ValidationError as error:
        raise _invalid(error) from None
    given = {
        name: value
        for name in asked
        if not any(_same(asked[name], neutral) for neutral in table[name].neutral)
        and (value := getattr(read, name)) is not None
    }
    return Body(route=route, given=given, ignored=tuple(strange))


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _unknown(name: str, known: list[str]) -> ApiError:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean `{close[0]}`? " if close else ""
    return ApiError(
        400,
        f"`{name}` is not a field of this server; {meant}docs/serving.md lists the fields, and --unknown-fields warn "
        "lets the server ignore unknown ones",
        param=name,
        code="unknown_parameter",
    )


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = path[0] if path else None
    if first["type"] == "missing":
        return ApiError(400, f"`{field}` is required", param=field, code="missing_required_parameter")
    of_field = [each for each in error.errors() if each["loc"][:1] == first["loc"][:1]]
    reasons = list(dict.fromkeys(each["msg"][:1].lower() + each["msg"][1:] for each in of_field))
    # A union reports each of its members; the path of one of them would mislead.
    param = field if len(of_field) > 1 else ".".join(path)
    return ApiError(400, f"`{field}`: {'; or '.join(reasons[:4])}", param=param, code="invalid_type")
