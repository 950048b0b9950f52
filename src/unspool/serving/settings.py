"""Settings of the server: addresses, limits and keys. The flags of `unspool serve` derive from them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from unspool.errors import OptionError


def _setting(default: Any, panel: str, help: str, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"panel": panel, "help": help, "least": least, "most": most})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of `unspool serve`. Each is a flag of the same name, and a key of the TOML file of `--config`.

    Metadata of each field: `help`, `panel` (its section in `--help`), `least` and `most` (its bounds).
    """

    host: str = _setting("127.0.0.1", "Address", "Address to listen on; 0.0.0.0 for all networks.")
    port: int = _setting(8000, "Address", "Port to listen on; 0 for any free one.", 0, 65535)
    served_model_name: tuple[str, ...] = _setting(
        (), "Address", "Name of the model in requests; by default the name it is loaded by. Can be repeated."
    )
    no_explore: bool = _setting(False, "Address", "Leave out the web explorer at /.")
    any_model: bool = _setting(False, "Address", "Accept any name in the field `model`.")
    api_key: tuple[str, ...] = _setting((), "Access", "Require one of these keys. Can be repeated.")
    allowed_host: tuple[str, ...] = _setting(
        (), "Access", "Further value of the Host header, besides localhost and --host; * for any. Can be repeated."
    )
    cors_origin: tuple[str, ...] = _setting((), "Access", "Web origin that browsers can call from. Can be repeated.")
    unknown_fields: Literal["error", "warn"] = _setting(
        "error", "Access", "error: status 400 for unknown fields. warn: ignore them, and list them in a header."
    )
    max_running: int = _setting(64, "Limits", "Most prompts that run at once; others wait.", 1)
    max_queue: int = _setting(256, "Limits", "Most prompts that wait; further requests get status 429.", 0)
    max_body_bytes: int = _setting(4 << 20, "Limits", "Largest request body in bytes.", 1)
    max_prompts: int = _setting(64, "Limits", "Most prompts in one request.", 1)
    max_prompt_tokens: int | None = _setting(
        None, "Limits", "Most tokens of a prompt; by default the model's own limit.", 1
    )
    max_n: int = _setting(64, "Limits", "Largest n, best_of and num_return_sequences.", 1)
    max_beams: int = _setting(64, "Limits", "Largest num_beams.", 1)
    max_stops: int = _setting(16, "Limits", "Most stop strings.", 0)
    max_grammar_bytes: int = _setting(
        64 << 10, "Limits", "Longest JSON schema, regular expression or grammar in bytes.", 1
    )
    default_max_tokens: int | None = _setting(
        None, "Limits", "Most new tokens of a chat answer without max_tokens; by default the rest of the context.", 1
    )
    timeout: float = _setting(600.0, "Times", "Longest time of one request in seconds, waiting included.", 0.001)
    grace: float = _setting(10.0, "Times", "Seconds that running requests have to end after SIGTERM.", 0)
    keep_alive: float = _setting(15.0, "Times", "Seconds of silence before a stream gets a comment line.", 0.001)

    def __post_init__(self) -> None:
        _check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Settings of the models of `unspool serve`, beside the flags that all commands share. Metadata as in Settings."""

    assistant_model: tuple[str, ...] = _setting(
        (), "Model", "Draft model that requests can name in `assistant`: a name or a folder. Can be repeated."
    )
    response_template: str | None = _setting(
        None,
        "Model",
        "Template of transformers that finds tool calls and reasoning in answers: a file, or JSON.",
    )
    max_cache_tokens: int | None = _setting(
        None,
        "Model",
        "Most tokens in the KV cache over all running requests; by default as many as fit in half of the free memory. "
        "A request counts with its prompt and its most new tokens. Further requests wait.",
        1,
    )
    max_sequences: int | None = _setting(
        None, "Model", "Most sequences that run at once; each beam and output counts. Default: 256.", 1
    )

    def __post_init__(self) -> None:
        _check_bounds(self)

    def limits(self) -> dict[str, int]:
        """Return the given limits, as options of `unspool.load`."""
        given = {"max_cache_tokens": self.max_cache_tokens, "max_sequences": self.max_sequences}
        return {name: limit for name, limit in given.items() if limit is not None}


def _check_bounds(settings: Settings | ModelSettings) -> None:
    for each in fields(settings):
        value, least = getattr(settings, each.name), each.metadata["least"]
        if least is not None and value is not None and value < least:
            raise OptionError(each.name, value, f"must be at least {least:g}", "see unspool serve --help")
        if (most := each.metadata["most"]) is not None and value > most:
            raise OptionError(each.name, value, f"must be at most {most:g}", "see unspool serve --help")


def read_settings(file: Path | None, flags: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Return one object per class, from a TOML file overridden by flags.

    Args:
        file: TOML with the names of fields as keys; None for none.
        flags: the given flags.
        kinds: dataclasses with different fields.

    Raises:
        OptionError: if a name is unknown, a value is out of range, or the file is not TOML.
        OSError: if the file cannot be read.
    """
    given = {**_stored(file), **flags}
    known = {each.name for kind in kinds for each in fields(kind)}
    for name in given.keys() - known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else "see unspool serve --help"
        raise OptionError(name, given[name], "is not a setting of the server", hint)
    return [_checked(kind, given) for kind in kinds]


def _stored(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError("config", str(file), f"must be a TOML file ({error})", "see docs/serving.md") from None


def _checked(kind: type[Any], given: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    own = {each.name: given[each.name] for each in fields(kind) if each.name in given}
    try:
        return TypeAdapter(kind).validate_python(own)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), OptionError):
            raise cause from None
        name = str(first["loc"][0]) if first["loc"] else "config"
        allowed = first["msg"][:1].lower() + first["msg"][1:]
        raise OptionError(name, first["input"], f"is wrong ({allowed})", "see unspool serve --help") from None
