"""From the fields of a request to options of the engine.

Owns OpenAI's rules: temperature 0 is greedy, and a request without a strategy samples. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from unspool.config import OPTIONS
from unspool.config.strategies import STRATEGIES, selectors
from unspool.errors import OptionError
from unspool.serving.errors import ApiError, api_error, refused
from unspool.serving.requests.bodies import Body
from unspool.serving.requests.fields import fields_of
from unspool.serving.settings import Settings
from unspool.strategy_facts import ASSISTANT

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default of `max_tokens` for completions."""

MAX_TOP_LOGPROBS: Final = 20

MAX_WORDS: Final = 64 << 10
"""Most characters of stop strings, forced words or bad words as JSON. Long ones take seconds to encode or to search."""

_SAMPLING: Final = frozenset(option.name for option in OPTIONS.values() if option.samples) - {"best_of"}

_CHOOSING: Final = frozenset(
    {"strategy", "do_sample", "best_of"}.union(*map(selectors, STRATEGIES))
    - {ASSISTANT, "prompt_lookup_num_tokens"}
    - _SAMPLING
)
"""Options that choose a strategy. Without any of them, a request samples."""

_CONSTRAINTS: Final[Mapping[str, str]] = {
    "json": "json_schema",
    "json_schema": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}
"""Key of `structured_outputs` --> option."""

CONSTRAINTS: Final = frozenset(_CONSTRAINTS.values())
"""Options that constrain the text to a grammar."""

_WHITESPACE: Final = frozenset({"whitespace_pattern", "disable_any_whitespace", "disable_fallback"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to decode a request.

    options: of `LanguageModel.generate`. fields: option --> field that set it. num_top: number
    of alternatives to report per token; None without log-probabilities. only_scores: True if no token is wanted.
    """

    options: dict[str, Any]
    fields: Mapping[str, str]
    num_top: int | None = None
    only_scores: bool = False


def decoding(body: Body, settings: Settings, *, tokenizer: Any, vocab_size: int) -> Decoding:
    """Return the options of a request.

    Raises:
        ApiError: 400, if a field has a value that this server cannot serve, or that exceeds a limit.
    """
    reader = _Reader(body)
    for name, field in fields_of(body.route).items():
        option = field.option or (name if field.source == "Unspool" and name in OPTIONS else "")
        if option and name in body.given:
            reader.set(option, body.given[name], name)
            if field.source == "Unspool" and not field.option:  # a field of no type of its own
                _check(option, body.given[name])
    check_sizes(reader.options, settings, reader.fields)
    _check_counts(body)
    _read_stops(reader, settings)
    _read_lengths(reader)
    _read_tokens(reader, tokenizer, vocab_size)
    _read_constraints(reader, settings)
    only_scores = reader.options.get("max_new_tokens") == 0
    if only_scores:
        if not body.get("echo"):
            raise refused("max_tokens", "must be at least 1 without `echo`")
        reader.options["max_new_tokens"] = 1
    num_top = _read_logprobs(reader)
    _read_sampling(reader)
    return Decoding(options=reader.options, fields=reader.fields, num_top=num_top, only_scores=only_scores)


class _Reader:
    """Collects options, and the field that set each. Two fields for one option must agree."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.options: dict[str, Any] = {}
        self.fields: dict[str, str] = {}

    def set(self, option: str, value: Any, field: str) -> None:
        """Set an option."""
        if option in self.options and self.options[option] != value:
            other = self.fields[option]
            raise refused(field, f"contradicts `{other}`: both set the same; give one of them")
        self.options[option] = value
        self.fields[option] = field


def _check(option: str, value: Any) -> None:
    try:
        OPTIONS[option].check(value)
    except OptionError as error:
        raise api_error(error) from None


def check_sizes(options: Mapping[str, Any], settings: Settings, fields: Mapping[str, str]) -> None:
    """Check numbers of outputs and beams, and lengths of stop strings and forced words, against a server's limits.

    Args:
        options: of the engine, unchecked.
        fields: option --> field that set it, for messages; an option without an entry is its own field.

    Raises:
        ApiError: 400 if a limit is exceeded.
    """
    for name, limit in (
        ("num_return_sequences", settings.max_n),
        ("best_of", settings.max_n),
        ("num_beams", settings.max_beams),
    ):
        value = options.get(name)
        if isinstance(value, int) and value > limit:
            told = f"must be at most {limit} on this server, got {value}"
            raise refused(fields.get(name, name), told, code="limit_exceeded")
    for name in ("stop_strings", "force_words"):
        _check_words(options.get(name), fields.get(name, name))


def check_grammars(options: Mapping[str, Any], settings: Settings, fields: Mapping[str, str]) -> None:
    """Check the lengths of grammars against a server's limit. Arguments and errors as in `check_sizes`."""
    for name in CONSTRAINTS:
        if len(repr(options.get(name, ""))) > settings.max_grammar_bytes:
            limit = f"is longer than {settings.max_grammar_bytes} bytes, the limit of this server"
            raise refused(fields.get(name, name), limit, code="limit_exceeded")


def _check_words(given: Any, field: str) -> None:
    if len(repr(given)) > MAX_WORDS:
        limit = f"is longer than {MAX_WORDS} characters, the limit of this server"
        raise refused(field, limit, code="limit_exceeded")


def _check_counts(body: Body) -> None:
    """Check fields that are not options of the engine, or that it reads in another way."""
    _check_words(body.get("bad_words"), "bad_words")
    for name in ("n", "best_of"):
        if (value := body.get(name)) is not None and value < 1:
            raise refused(name, f"must be at least 1, got {value}")
    if (best_of := body.get("best_of")) is not None:
        if best_of < body.get("n", 1):
            raise refused("best_of", f"must be at least `n`, got {best_of}")
        if body.get("stream"):
            raise refused("best_of", "cannot be streamed: the best outputs are known at the end")


def _read_stops(reader: _Reader, settings: Settings) -> None:
    stops = reader.options.get("stop_strings")
    if stops is None:
        return
    given = [stops] if isinstance(stops, str) else list(stops)
    if len(given) > settings.max_stops:
        raise refused("stop", f"must be at most {settings.max_stops} texts on this server, got {len(given)}")
    reader.options["stop_strings"] = [each for each in given if each]
    if not reader.options["stop_strings"]:
        del reader.options["stop_strings"]


def _read_lengths(reader: _Reader) -> None:
    if (most := reader.options.get("max_new_tokens")) is not None and isinstance(most, int) and most < 0:
        raise refused(reader.fields["max_new_tokens"], f"must be at least 0, got {most}")
    if reader.body.route == "completions" and not reader.options.keys() & {"max_new_tokens", "max_length"}:
        reader.options["max_new_tokens"] = DEFAULT_MAX_TOKENS


def _read_tokens(reader: _Reader, tokenizer: Any, vocab_size: int) -> None:
    """Read fields about single tokens."""
    body, options = reader.body, reader.options
    if (bias := options.pop("sequence_bias", None)) is not None and reader.fields["sequence_bias"] == "logit_bias":
        if wrong := next((value for value in bias.values() if not -100 <= value <= 100), None):
            raise refused("logit_bias", f"must have values from -100 to 100, got {wrong}")
        options["sequence_bias"] = {(_token(key, vocab_size),): value for key, value in bias.items()}
    elif bias is not None:
        options["sequence_bias"] = bias
    if (allowed := body.get("allowed_token_ids")) is not None:
        keep = set(allowed)
        if not keep or not all(0 <= token < vocab_size for token in keep):
            raise refused("allowed_token_ids", f"must name tokens from 0 to {vocab_size - 1}")
        reader.set("suppress_tokens", [token for token in range(vocab_size) if token not in keep], "allowed_token_ids")
    if words := body.get("bad_words"):
        if tokenizer is None:
            raise refused("bad_words", "needs a tokenizer, which this model lacks")
        forms = [form for word in words for form in (word, f" {word.lstrip()}")]
        ids = [list(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in forms]
        reader.set("bad_words_ids", [each for each in ids if each], "bad_words")
    for name in ("include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"):
        if body.get(name) is not None:
            only = "false" if name.startswith("include") else "true"
            raise refused(name, f"can only be {only} on this server", code="unsupported_value")


def _token(key: str, vocab_size: int) -> int:
    if not key.strip().isdigit() or int(key) >= vocab_size:
        raise refused("logit_bias", f"must have token ids from 0 to {vocab_size - 1} as keys, got {key!r}")
    return int(key)


def _read_constraints(reader: _Reader, settings: Settings) -> None:
    """Read `response_format` and `structured_outputs`."""
    body = reader.body
    if (wanted := body.get("response_format")) is not None:
        kind = wanted.get("type")
        if kind == "json_object":
            reader.set("json_object", True, "response_format")
        elif kind == "json_schema":
            holder = wanted.get("json_schema")
            schema = holder.get("schema") if isinstance(holder, dict) else None
            if not isinstance(schema, dict):
                raise ApiError(
                    400,
                    "`response_format.json_schema.schema` must be a JSON schema",
                    param="response_format.json_schema.schema",
                )
            reader.set("json_schema", schema, "response_format")
        else:
            raise ApiError(
                400,
                f"`response_format.type` must be text, json_object or json_schema, got {kind!r}",
                param="response_format.type",
            )
    for key, value in body.get("structured_outputs", {}).items():
        path = f"structured_outputs.{key}"
        if key in _WHITESPACE or value is None or (key == "json_object" and value is False):
            continue
        if key not in _CONSTRAINTS:
            raise ApiError(400, f"`{path}` is not known", param=path, code="unknown_parameter")
        reader.set(_CONSTRAINTS[key], value, "structured_outputs")
    check_grammars(reader.options, settings, reader.fields)


def _read_logprobs(reader: _Reader) -> int | None:
    """Return the number of alternatives per token; None if log-probabilities are not wanted."""
    body = reader.body
    top = body.get("top_logprobs")
    if body.route == "chat":
        if top is not None and not body.get("logprobs"):
            raise refused("top_logprobs", "needs `logprobs: true`")
        count = (top or 0) if body.get("logprobs") else None
    else:
        count = body.get("logprobs")
    if count is None:
        return None
    field = "top_logprobs" if body.route == "chat" else "logprobs"
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise refused(field, f"must be between 0 and {MAX_TOP_LOGPROBS}, got {count}")
    reader.options["logprobs"] = count
    reader.fields["logprobs"] = field
    return int(count)


def _read_sampling(reader: _Reader) -> None:
    """Sample unless a field chooses a strategy; at temperature 0, decode greedily and drop the sampling fields."""
    options, body = reader.options, reader.body
    if body.get("use_beam_search"):
        beams = options.pop("best_of", None) or options.get("num_return_sequences", 1)
        reader.set("num_beams", beams, "use_beam_search")
    if options.get("best_of") == options.get("num_return_sequences", 1):
        options.pop("best_of", None)
    if options.get("temperature") == 0:
        for name in _SAMPLING & options.keys():
            del options[name]
        if "do_sample" not in options and "best_of" not in options:
            options["do_sample"] = False
    elif not _CHOOSING & options.keys():
        options["do_sample"] = True
