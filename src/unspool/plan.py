"""From what a caller gives to requests: options resolved, prompts encoded, seeds chosen, criteria built.

Shared by every door (generate, stream, next_tokens, the drop-in), so that an option means one thing everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unspool.config import GenerationConfig, resolve
from unspool.engine import Request
from unspool.errors import OptionError
from unspool.prompts import encode
from unspool.protocols import Criterion, Processor, Strategy
from unspool.seeds import fresh_seed
from unspool.strategies import STRATEGIES, WithPromptScores
from unspool.text.detokenize import Detokenizer
from unspool.text.stops import StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a caller passes beside options: a strategy, processors and criteria of the caller's own."""

    strategy: Strategy | None = None
    processors: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One prompt ready to submit. prompt_text: as given; None where token ids were given."""

    request: Request
    prompt_text: str | None


def resolve_options(
    options: Mapping[str, Any], user: GenerationConfig | None, stored: GenerationConfig, *, drop_in: bool = False
) -> tuple[GenerationConfig, Own]:
    """Split a call's keyword arguments into a resolved config and the caller's own objects.

    `strategy` may be a name or an object; an object may read any option, so only values are checked then.

    Raises:
        OptionError: an option is unknown, out of range, in conflict, or not read by the chosen strategy.
    """
    if user is not None and not isinstance(user, GenerationConfig):
        raise OptionError("config", user, "must be an unspool.GenerationConfig", "give options as keywords instead")
    given = dict(options)
    strategy = None if isinstance(given.get("strategy"), str | None) else given.pop("strategy")
    own = Own(
        strategy=strategy,
        processors=_objects("processors", given.pop("processors", None), ("name", "start", "advance", "fork", "apply")),
        criteria=_objects("criteria", given.pop("criteria", None), ("name", "start", "advance", "ends")),
    )
    if strategy is not None:
        _objects("strategy", (strategy,), ("name", "space", "max_branches", "run"))
    return resolve(given, user, stored, drop_in=drop_in, custom=strategy.name if strategy else None), own


def _objects(option: str, given: Any, needed: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the caller's own objects as a tuple, once each is seen to have what its protocol asks for."""
    if given is None:
        return ()
    protocol = {"processors": "Processor", "criteria": "Criterion", "strategy": "Strategy"}[option]
    hint = f"see unspool.protocols.{protocol} and docs/extending.md"
    if not isinstance(given, list | tuple):
        raise OptionError(option, given, f"must be a list of {protocol} objects", hint)
    for each in given:
        missing = [name for name in needed if not hasattr(each, name)]
        if missing:
            raise OptionError(
                option, each, f"must hold objects with {', '.join(needed)} ({missing[0]} is missing)", hint
            )
    return tuple(given)


def plan_jobs(
    prompts: Sequence[str | tuple[int, ...]],
    config: GenerationConfig,
    own: Own,
    *,
    tokenizer: Any,
    detokenizer: Detokenizer | None,
    bos_token_id: int | None,
) -> list[Job]:
    """Return one job for each prompt.

    Raises:
        PromptError: a prompt cannot be read. OptionError: an option needs what the model has not.
    """
    config = _with_token_breakers(config, tokenizer)
    criteria = _criteria(config, own, detokenizer)
    jobs = []
    for prompt, seed in zip(prompts, _seeds(config.seed, len(prompts)), strict=True):
        ids = encode(prompt, tokenizer, bos_token_id)
        strategy = own.strategy or STRATEGIES[config.strategy or "greedy"]
        if config.echo and config.logprobs is not None:
            strategy = WithPromptScores(strategy)
        request = Request(
            prompt=ids, config=config, seed=seed, strategy=strategy, processors=own.processors, criteria=criteria
        )
        jobs.append(Job(request=request, prompt_text=prompt if isinstance(prompt, str) else None))
    return jobs


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return a seed for each prompt: the given one for all, one each, or fresh ones."""
    if seed is None:
        return [fresh_seed() for _ in range(count)]
    if isinstance(seed, int):
        return [seed] * count
    if len(seed) != count:
        raise OptionError(
            "seed",
            tuple(seed),
            f"must be one integer, or one for each of the {count} prompts",
            "give as many seeds as prompts",
        )
    return list(seed)


def _criteria(config: GenerationConfig, own: Own, detokenizer: Detokenizer | None) -> tuple[Criterion, ...]:
    """Return the reasons to stop: stop strings first, then the caller's own."""
    if not config.stop_strings:
        return own.criteria
    if detokenizer is None:
        hint = "give `tokenizer=` to load(), or stop at token ids with `eos_token_id`"
        raise OptionError("stop_strings", config.stop_strings, "needs a tokenizer to read text with", hint)
    return (StopStrings(config.stop_strings, detokenizer), *own.criteria)


def _with_token_breakers(config: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Turn DRY's sequence breakers that are text into token ids, each by its last token, for the processor."""
    breakers = config.dry_sequence_breakers
    if not config.dry_multiplier or not any(isinstance(breaker, str) for breaker in breakers or ()):
        return config
    if tokenizer is None:
        hint = "give `tokenizer=` to load(), or token ids as breakers"
        raise OptionError("dry_sequence_breakers", breakers, "holds text and needs a tokenizer", hint)
    # The "a" keeps tokenizers that mark the beginning of a text from adding their mark to the breaker.
    encoded = [
        tokenizer("a" + breaker, add_special_tokens=False)["input_ids"][-1] if isinstance(breaker, str) else breaker
        for breaker in breakers or ()
    ]
    return config.replace(dry_sequence_breakers=tuple(dict.fromkeys(encoded)))
