"""Requests that generate no text: the next token's distribution, and log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from unspool.config import GenerationConfig
from unspool.engine import Request
from unspool.errors import OptionError, PromptError
from unspool.inputs.prompts import read_prompts
from unspool.inputs.reader import Reader
from unspool.per_prompt import Group
from unspool.planning import CallerObjects, PlannedRequest, resolve_options
from unspool.strategies import STRATEGIES, ContinuationScores, NextTokenQuery
from unspool.text.encode import token_ids
from unspool.types import ModelInfo

Planner: TypeAlias = Callable[[Group, GenerationConfig, CallerObjects], list[PlannedRequest]]

BEYOND_ONE_TOKEN: Final = (
    "stop_strings",
    "max_time",
    "num_return_sequences",
    "logprobs",
    "echo",
    "length_penalty",
    "early_stopping",
    "lookahead_steps",
    "num_beam_groups",
    "diversity_penalty",
    "force_words",
    "force_words_ids",
    "force_words_ordered",
    "penalty_alpha",
    "best_of",
    "best_of_by",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
)
"""Options of whole outputs, without effect on the distribution of one token."""


def check_affects_next_token(config: GenerationConfig, own: CallerObjects) -> None:
    """Check that all requested options can affect the next token's distribution.

    Raises:
        OptionError: if one cannot, or if a draft model is given.
    """
    given: dict[str, Any] = {name: getattr(config, name) for name in BEYOND_ONE_TOKEN if name in config.requested}
    if own.assistant is not None:
        given["assistant_model"] = own.assistant.runtime.info.name
    for name, value in given.items():
        raise OptionError(name, value, "does not change the next token alone", "leave it out")


def next_token_jobs(groups: Sequence[Group], stored: GenerationConfig, plan: Planner) -> list[PlannedRequest]:
    """Return one request per prompt for the distribution of the next token.

    Raises:
        OptionError: if an option does not change the next token alone.
    """
    jobs: list[PlannedRequest] = []
    for group in groups:
        with group.naming():
            resolved, own = resolve_options(group.options, group.config, stored)
            check_affects_next_token(resolved, own)
            space = (own.strategy or STRATEGIES[resolved.strategy or "greedy"]).space
            jobs += plan(group, resolved.replace(echo=None), replace(own, strategy=NextTokenQuery(space)))
    return jobs


class ToScore(NamedTuple):
    """One continuation to score. prompt_ids: as the model reads the prompt. token_ids: of the continuation."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    request: Request


def read_scores(prompt: Any, continuation: Any, reader: Reader) -> tuple[list[ToScore], bool]:
    """Return the pairs to score, in order, and True if the caller gave one prompt and one continuation.

    One prompt goes with every continuation of a list, and one continuation with every prompt of a list.

    Raises:
        PromptError: if a prompt or a continuation cannot be read, or the two together are too long for the model.
        OptionError: if two lists differ in length.
    """
    prompts, continuations = reader.split(prompt), read_prompts(continuation)
    if prompts.single and isinstance(continuation, list | tuple) and not continuations.items:
        raise PromptError("the continuation holds no token, so there is nothing to score")
    config, _ = resolve_options({"max_new_tokens": 1}, None, GenerationConfig())
    pairs: list[ToScore] = []
    for before, after in _pairs(prompts.items, continuations.items, prompts.single, continuations.single):
        reading = reader.read(before)
        tokens = read_continuation(after, reading.ids, reader.tokenizer, reader.info)
        request = Request(
            prompt=reading.ids + tokens[:-1],
            config=config,
            seed=0,
            strategy=ContinuationScores(tokens),
            source=reading.source,
        )
        pairs.append(ToScore(reading.ids, tokens, request))
    return pairs, prompts.single and continuations.single


def _pairs(
    prompts: Sequence[Any], continuations: Sequence[Any], one_prompt: bool, one_continuation: bool
) -> Iterator[tuple[Any, Any]]:
    if one_prompt:
        prompts = [*prompts] * len(continuations)
    elif one_continuation:
        continuations = [*continuations] * len(prompts)
    if len(prompts) != len(continuations):
        allowed = f"must be one continuation, or a list with one for each of the {len(prompts)} prompts"
        hint = f"give {len(prompts)} continuations"
        raise OptionError("continuation", continuations, f"{allowed} (the list has {len(continuations)})", hint)
    return zip(prompts, continuations, strict=True)


def read_continuation(
    tokens: str | tuple[int, ...], before: tuple[int, ...], tokenizer: Any, info: ModelInfo
) -> tuple[int, ...]:
    """Return the token ids of a continuation of the prompt `before`.

    Args:
        tokens: a text, which is encoded by itself, or token ids.

    Raises:
        PromptError: if a token is missing, or the two together are longer than the model holds.
    """
    if isinstance(tokens, str):
        if tokenizer is None:
            raise PromptError("a text to score needs a tokenizer; give `tokenizer=` to load(), or token ids")
        tokens = token_ids(tokenizer, tokens, add_special_tokens=False)
    if not tokens:
        raise PromptError("the continuation holds no token, so there is nothing to score")
    for index, token in enumerate(tokens):
        if not 0 <= token < info.vocab_size:
            raise PromptError(f"token {index} to score is {token}, outside the vocabulary of {info.vocab_size}")
    total = len(before) + len(tokens)
    if info.max_length is not None and total > info.max_length:
        raise PromptError(
            f"prompt and continuation have {total} tokens together and {info.name} holds {info.max_length}"
        )
    return tokens
