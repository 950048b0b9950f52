"""Errors of the HTTP API: their JSON form, and the HTTP status of each exception of Unspool.

Owns the mapping from exceptions to statuses. Knows no routes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import format_tb
from typing import Any, Final

from unspool.errors import (
    CancelledRequest,
    CapacityError,
    MissingExtra,
    NumericsError,
    OptionError,
    PromptError,
    StrategyError,
)

_LOG: Final = logging.getLogger("unspool.server")

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""Type of an error by its status; every other status is an "invalid_request_error"."""

NO_RETRY: Final = {"x-should-retry": "false"}
"""Header of faults that come again with the same request; OpenAI's clients otherwise send it three times."""


class ApiError(Exception):
    """An answer with an error status.

    Args:
        status: HTTP status.
        message: as text for a person.
        param: dotted path of the field at fault; None for none.
        code: a fixed word for programs; None for none.
        headers: to add to the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON form that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(param: str, message: str, *, code: str | None = None) -> ApiError:
    """Return the error of a field with a value that cannot be served. message: goes on after the field's name."""
    return ApiError(400, f"`{param}` {message}", param=param, code=code)


def too_long(count: int, limit: int) -> ApiError:
    """Return the error of a prompt that leaves no room for a new token, in the words that clients look for."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, your prompt has {count} tokens, which leaves "
        "no room for a new one. Please shorten it.",
        param="prompt",
        code="context_length_exceeded",
    )


def too_slow(seconds: float) -> ApiError:
    """Return the error of a request that exceeds the time limit. seconds: the limit."""
    message = f"the request took longer than {seconds:g} s, the limit of this server"
    return ApiError(504, message, code="timeout", headers=NO_RETRY)


def api_error(error: BaseException, fields: Mapping[str, str] | None = None) -> ApiError:
    """Return the answer to an exception. Logs the place of an unexpected one.

    Args:
        fields: option --> name of the request's field that set it, if the names differ.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OptionError):
        field = (fields or {}).get(error.option, error.option)
        named = OptionError(field, error.given, error.allowed, error.hint)
        return ApiError(400, str(named), param=field, code="invalid_value")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), param="prompt", code="invalid_prompt")
    if isinstance(error, CapacityError):
        return ApiError(400, str(error), code="capacity_exceeded")
    if isinstance(error, MissingExtra):
        return ApiError(501, str(error), code="missing_package", headers=NO_RETRY)
    if isinstance(error, CancelledRequest):
        return ApiError(503, str(error), code="cancelled")
    if isinstance(error, NumericsError | StrategyError):
        return ApiError(500, str(error), code=type(error).__name__, headers=NO_RETRY)
    # Without the message, which can hold text of the prompt.
    _LOG.error("unexpected fault: %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
    return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error", headers=NO_RETRY)


@contextmanager
def api_errors(*others: type[Exception]) -> Iterator[None]:
    """Turn the exceptions of the block into ApiError. others: exceptions that stay as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ApiError, *others)):
            raise
        raise api_error(error) from error
