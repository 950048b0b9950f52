"""Bodies of the explorer's routes: a prompt, tokens after it, and options, with the limits of the server.

Owns the fields. Does not know: how requests run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from unspool.config import OPTIONS
from unspool.model import LanguageModel
from unspool.serving.errors import ApiError, refused
from unspool.serving.execution.service import Service
from unspool.serving.requests.decoding import check_grammars, check_sizes
from unspool.serving.settings import Settings
from unspool.strategy_facts import ASSISTANT

_FIELDS: Final = frozenset({"prompt", "path", "options", "limit", "tokens", "entries"})

MAX_SHOWN: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked body.

    prompt: as the model's API takes it: a text, or token ids if `path` is given. text: the prompt without the path.
    path: tokens after it. options: of `LanguageModel.generate`. given: the same as plain JSON. limit: number of tokens
    to show. tokens: of an output. entries: name --> options, for a comparison. given_entries: the same as plain JSON.
    salt: see `Service.salt`.
    """

    prompt: str | list[int]
    text: str
    path: list[int]
    options: dict[str, Any]
    given: dict[str, Any]
    limit: int = 40
    tokens: tuple[int, ...] = ()
    entries: Mapping[str, dict[str, Any]] | None = None
    given_entries: Mapping[str, dict[str, Any]] | None = None
    salt: str = ""

    @property
    def salted(self) -> dict[str, Any]:
        """The options, and the salt."""
        return {**self.options, "cache_salt": self.salt}


def read_call(data: object, service: Service, caller: str) -> Call:
    """Return the call of a body. caller: identifies the API key; see `Guard`.

    Raises:
        ApiError: 400 if a field is unknown, is of the wrong type, or exceeds a limit.
    """
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(data).__name__}")
    for name in data.keys() - _FIELDS:
        raise refused(name, f"is not known; known fields are {', '.join(sorted(_FIELDS))}", code="unknown_parameter")
    prompt, limit = data.get("prompt"), data.get("limit", 40)
    if not isinstance(prompt, str):
        raise refused("prompt", "must be a text")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_SHOWN:
        raise refused("limit", f"must be an integer from 1 to {MAX_SHOWN}, got {limit!r}")
    path = _tokens(data.get("path", []), "path", service.lm)
    entries, options = data.get("entries"), _given(data.get("options", {}), "options")
    given_entries = None if entries is None else _given_entries(entries, service.settings)
    return Call(
        prompt=[*read_prompt(service.lm, prompt), *path] if path else prompt,
        text=prompt,
        path=path,
        options=_checked(options, service),
        given=options,
        limit=limit,
        tokens=tuple(_tokens(data.get("tokens", []), "tokens", service.lm)),
        entries=given_entries and {name: _checked(each, service) for name, each in given_entries.items()},
        given_entries=given_entries,
        salt=service.salt(caller, ""),
    )


def read_prompt(lm: LanguageModel, prompt: str | list[int]) -> list[int]:
    """Return the token ids of a prompt, as the model reads it.

    Raises:
        PromptError: if it cannot be read.
    """
    return list(lm._reader.read(prompt).ids)


def as_text(lm: LanguageModel, prompt: str | list[int]) -> str | None:
    """Return a prompt as one text; None if the model would read that text as other tokens."""
    if isinstance(prompt, str):
        return prompt
    if lm.tokenizer is None:
        return None
    text: str = lm.tokenizer.decode(prompt, skip_special_tokens=True)
    return text if text and read_prompt(lm, text) == prompt else None


def _tokens(given: object, name: str, lm: LanguageModel) -> list[int]:
    size = lm.info.vocab_size
    if not isinstance(given, list) or not all(type(token) is int and 0 <= token < size for token in given):
        raise refused(name, f"must be a list of token ids from 0 to {size - 1}")
    if given and name == "path" and lm.info.needs_source:
        raise refused(name, f"is not possible for {lm.info.name}: its output does not continue the prompt")
    return given


def _given_entries(given: object, settings: Settings) -> dict[str, dict[str, Any]]:
    if not isinstance(given, dict) or not 1 <= len(given) <= settings.max_prompts:
        raise refused("entries", f"must be an object with 1 to {settings.max_prompts} names of options")
    return {name: _given(options, f"entries.{name}") for name, options in given.items()}


def _given(given: object, field: str) -> dict[str, Any]:
    """Return the options that are not null, after a check of their names."""
    if not isinstance(given, dict):
        raise refused(field, f"must be an object of options, got {type(given).__name__}")
    for name in given:
        known = name == ASSISTANT or name in OPTIONS
        if not known or (name in OPTIONS and OPTIONS[name].door == "drop_in"):
            raise refused(name, "is not an option; GET /explore/facts lists them", code="unknown_parameter")
    return {name: value for name, value in given.items() if value is not None}


def _checked(options: dict[str, Any], service: Service) -> dict[str, Any]:
    """Return options within the limits of the server, with draft models for their names."""
    check_sizes(options, service.settings, {})
    check_grammars(options, service.settings, {})
    if isinstance(seed := options.get("seed"), list):
        raise refused("seed", f"must be one integer, got {seed!r}")
    return service.with_objects(options)
