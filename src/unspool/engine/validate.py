"""Validates a request against the model before it is queued, so that accepted requests can run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unspool.config import GenerationConfig
from unspool.engine.combine_logits import layers_of
from unspool.engine.request import Request
from unspool.errors import OptionError, PromptError
from unspool.protocols import Context
from unspool.types import ModelInfo


def check_limit(option: str, given: Any) -> None:
    """Check that a limit is an integer >= 1.

    Raises:
        OptionError: if it is not.
    """
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise OptionError(option, given, "must be an integer of at least 1", "leave it out for the default")


def context_of(request: Request, info: ModelInfo) -> Context:
    """Check a request against the model, and return the facts that its strategy and processors can use.

    Raises:
        PromptError: if the prompt is empty, has ids outside the vocabulary, or leaves no room for a new token.
        OptionError: if an option does not fit the model.
    """
    config = request.config
    _check_prompt(request, info)
    _check_token_ids(config, info)
    _check_seed_prompt_tokens(request)
    if config.batch_invariant and not info.batch_invariant:
        reason = info.batch_invariance_obstacle or info.backend
        raise OptionError("batch_invariant", True, f"is not possible for {info.name}: {reason}", "leave it unset")
    _check_strategy(request, info)
    eos = () if config.ignore_eos else (config.eos_token_id or _in_vocabulary(info.eos_token_ids, info))
    return Context(
        config=config,
        prompt=known_prompt(request, info),
        max_new_tokens=_room(request, info),
        seed=request.seed,
        info=info,
        eos_token_ids=tuple(eos),
        # As in transformers, beams need one token more than there are ways to end. Stochastic beams are samples.
        min_tokens_to_keep=1 + len(eos) if config.num_beams > 1 and config.strategy != "stochastic_beam" else 1,
        draft=request.assistant.info if request.assistant is not None else None,
        layers=_layers(config, info),
        source_ids=request.prompt if request.source is None else request.source.token_ids,
        grammar=request.grammar,
    )


def known_prompt(request: Request, info: ModelInfo) -> tuple[int, ...]:
    """Return the known token ids of the prompt: all, or those of its source."""
    if request.source is None or info.needs_source:
        return request.prompt
    return request.source.token_ids


def _check_strategy(request: Request, info: ModelInfo) -> None:
    """Check that the model has everything that the strategy, the draft model and the negative prompt need."""
    name = request.strategy.name
    if info.needs_source and request.source is None:
        raise PromptError(f"{info.name} needs an encoder input; pass a text, audio or image")
    if request.source is not None and not (info.needs_source or info.takes_source):
        raise PromptError(
            f"{info.name} reads neither an encoder's input nor embeddings, images or audio ({info.backend}); give the "
            "prompt as a text or token ids"
        )
    if request.source is not None and request.config.batch_invariant:
        allowed = "is not possible for prompts with embeddings, images or audio: the model's own forward reads them"
        raise OptionError("batch_invariant", True, allowed, "leave it unset")
    for option in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
        value = getattr(request.config, option)
        if request.source is not None and not request.source.token_ids and option in request.config.requested:
            allowed = f"needs an encoder input of tokens, and {info.name} does not read text"
            raise OptionError(option, value, allowed, "leave it out")
    if info.needs_source and request.negative_prompt is not None and request.negative_source is None:
        raise PromptError(f"{info.name} needs an encoder input for the negative prompt; pass a text, audio or image")
    if request.strategy.hidden_states and not info.hidden_states:
        raise OptionError(
            "strategy",
            name,
            f"reads hidden states, which {info.name} does not hand out ({info.backend})",
            "name another",
        )
    draft = request.assistant.info if request.assistant is not None else None
    if draft is not None and draft.needs_source and not info.needs_source:
        allowed = f"must be a model without an encoder, as {info.name} is"
        raise OptionError("assistant_model", draft.name, allowed, "give a decoder of the same tokenizer")
    if draft is not None and draft.max_length is not None and len(request.prompt) >= draft.max_length:
        raise PromptError(
            f"the prompt has {len(request.prompt)} tokens and the draft model {draft.name} holds {draft.max_length} in "
            "all; shorten the prompt, or leave `assistant_model` out"
        )
    for token in request.negative_prompt or ():
        if token >= info.vocab_size:
            allowed = f"must hold token ids in [0, {info.vocab_size})"
            raise OptionError("negative_prompt", token, allowed, "use ids of this model's own tokenizer")


def _layers(config: GenerationConfig, info: ModelInfo) -> tuple[int, ...]:
    """Return the inner layers to contrast with the last; none if `dola_layers` is off."""
    if config.dola_layers is None:
        return ()
    if info.num_layers is None:
        allowed = f"cannot be had: the inner layers of {info.name} are not at hand ({info.backend})"
        raise OptionError("dola_layers", config.dola_layers, allowed, "leave it out")
    layers = layers_of(config.dola_layers, info)
    if not layers:
        allowed = f"must name a layer below {info.num_layers}, the layers of {info.name}"
        raise OptionError("dola_layers", config.dola_layers, allowed, "use 'low', 'high' or smaller numbers")
    return layers


def _in_vocabulary(tokens: tuple[int, ...], info: ModelInfo) -> tuple[int, ...]:
    return tuple(token for token in tokens if 0 <= token < info.vocab_size)


def _check_prompt(request: Request, info: ModelInfo) -> None:
    if not request.prompt:
        raise PromptError("the prompt holds no token; give at least one (a begin-of-sequence token will do)")
    for index, token in enumerate(request.prompt):
        if not 0 <= token < info.vocab_size:
            origin = _origin(request, index, info)
            raise PromptError(f"prompt token {index} is {token}, outside the vocabulary of {info.vocab_size}{origin}")


def _origin(request: Request, index: int, info: ModelInfo) -> str:
    """Return a hint about the origin of a prompt token that was not in the caller's prompt, or ""."""
    stored = "stored in model.generation_config (generation_config.json) or model.config (config.json)"
    if info.needs_source and index == 0:
        return f"; outputs begin with `decoder_start_token_id`, which is {stored} unless you give it"
    if len(request.prompt) == 1 and request.prompt[0] == info.bos_token_id:
        return f"; it is the `bos_token_id` {stored}, which replaces an empty prompt: give a prompt"
    return ""


def _check_seed_prompt_tokens(request: Request) -> None:
    """Check that the noise key uses no more tokens than the prompt has."""
    count, length = request.config.seed_prompt_tokens, len(request.prompt)
    if count is not None and count > length:
        allowed = f"must be at most the {length} tokens of the prompt"
        raise OptionError("seed_prompt_tokens", count, allowed, "lower it, or use None for the whole prompt")


def _check_token_ids(config: GenerationConfig, info: ModelInfo) -> None:
    """Check that all token ids in options are in the model's vocabulary."""
    groups: dict[str, Iterable[int]] = {
        "suppress_tokens": config.suppress_tokens or (),
        "begin_suppress_tokens": config.begin_suppress_tokens or (),
        "bad_words_ids": [token for word in config.bad_words_ids or () for token in word],
        "sequence_bias": [token for sequence in config.sequence_bias or {} for token in sequence],
        "forced_bos_token_id": _ids(config.forced_bos_token_id),
        "forced_eos_token_id": _ids(config.forced_eos_token_id),
        "eos_token_id": _ids(config.eos_token_id),
        "penalty_exclude": config.penalty_exclude or (),
        "xtc_exclude": config.xtc_exclude or (),
        "dry_sequence_breakers": _breaker_ids(config),
    }
    for option, tokens in groups.items():
        for token in tokens:
            if not 0 <= token < info.vocab_size:
                raise OptionError(
                    option,
                    token,
                    f"must hold token ids in [0, {info.vocab_size})",
                    "use ids of this model's own tokenizer",
                )


def _breaker_ids(config: GenerationConfig) -> list[int]:
    """Return the token ids among DRY's sequence breakers, if DRY is on. Text breakers are encoded elsewhere."""
    breakers = config.dry_sequence_breakers or () if config.dry_multiplier else ()
    return [token for each in breakers if not isinstance(each, str) for token in _ids(each)]


def _ids(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _room(request: Request, info: ModelInfo) -> int:
    """Return how many new tokens are possible: the minimum over the options and the model's length."""
    config, length = request.config, len(request.prompt)
    if info.max_length is not None and length >= info.max_length:
        raise PromptError(
            f"the prompt has {length} tokens and {info.name} holds {info.max_length} in all; shorten the prompt"
        )
    rooms = [config.max_new_tokens] if config.max_new_tokens is not None else []
    if config.max_length is not None and config.max_new_tokens is None:
        if config.max_length <= length:
            raise OptionError(
                "max_length",
                config.max_length,
                f"counts the prompt too and must be more than its {length} tokens",
                "raise it or use `max_new_tokens`",
            )
        rooms.append(config.max_length - length)
    if info.max_length is not None:
        rooms.append(info.max_length - max(length, len(request.negative_prompt or ())))
    if info.max_length is not None and len(request.negative_prompt or ()) >= info.max_length:
        allowed = f"must be shorter than the {info.max_length} tokens that {info.name} holds"
        raise OptionError("negative_prompt", f"{len(request.negative_prompt or ())} tokens", allowed, "shorten it")
    if not rooms:
        raise OptionError(
            "max_new_tokens", None, f"must be set for {info.name}, because its length is not limited", "give a number"
        )
    room = min(rooms)
    _check_least(config, length, room, info)
    return room


def _check_least(config: GenerationConfig, length: int, room: int, info: ModelInfo) -> None:
    """Check that the model's length has room for the minimum length. The config checks it against the other limits.

    Ignores values from the model's stored config, which the caller did not give.
    """
    for name, least in (("min_new_tokens", config.min_new_tokens), ("min_length", config.min_length)):
        most = room if name == "min_new_tokens" else length + room
        if least is not None and least > most and name in config.requested:
            count = f"at most {most}" if name == "min_new_tokens" else f"at most {most}, the prompt counted"
            limit = "" if info.max_length is None else f": {info.name} holds {info.max_length} tokens in all"
            raise OptionError(
                name, least, f"must be {count}{limit}, and the prompt has {length}", "lower it, or shorten the prompt"
            )
