"""Plans requests: resolves options, encodes prompts, draws seeds and builds stopping criteria.

Shared by all entry points (generate, stream, next_tokens, the drop-in), so that an option has the same meaning in all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, get_args

from unspool.adapters import as_strategy
from unspool.assistants import Assistant, check_source, check_vocabulary, read_assistant
from unspool.config import GenerationConfig, resolve
from unspool.config.strategies import reads_assistant
from unspool.config.vocabulary import without_unknown_ids
from unspool.engine import Request
from unspool.errors import OptionError
from unspool.inputs.prompts import encode
from unspool.inputs.reader import DEFAULT_DECODER_PROMPT, DecoderPrompt, Reader, read_decoder_prompt
from unspool.options.grammar_kinds import grammar_option
from unspool.protocols import Criterion, Processor, Strategy
from unspool.seeds import fresh_seed
from unspool.strategies import STRATEGIES, WithPromptScores
from unspool.text.detokenize import Detokenizer
from unspool.text.forced_words import forced_word_ids
from unspool.text.stops import StopStrings
from unspool.types import ModelInfo, Source, Space

if TYPE_CHECKING:
    from unspool.grammars import CompiledGrammar


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerObjects:
    """Objects that a caller passes beside options: a strategy, processors, criteria and a draft model.

    negative_prompts: token ids, one per prompt; None if the option `negative_prompt` applies. beginning: options for
    the start of the output. cache_salt: as in `Request`.
    """

    strategy: Strategy | None = None
    processors: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    assistant: Assistant | None = None
    negative_prompts: tuple[tuple[int, ...], ...] | None = None
    beginning: DecoderPrompt = DEFAULT_DECODER_PROMPT
    cache_salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request, ready to submit.

    prompt_text: as given; None for token ids. config: resolved, as the user sees it: with texts for options that the
    request has as token ids. model: its name.
    """

    request: Request
    prompt_text: str | None
    config: GenerationConfig
    model: str = ""


def resolve_options(
    options: Mapping[str, Any],
    user: GenerationConfig | None,
    stored: GenerationConfig,
    *,
    drop_in: bool = False,
    ignored: list[OptionError] | None = None,
) -> tuple[GenerationConfig, CallerObjects]:
    """Split a call's keyword arguments into a resolved config and the caller's objects.

    `strategy` can be a name or an object. An object can read any option, so only values are checked then.
    `assistant_model` is a LanguageModel, a Runtime, or a loaded transformers model. `decoder_input_ids`, `language` and
    `task` set the start of the output for models with an encoder.

    Args:
        drop_in: True for transformers' rules and defaults.
        ignored: collects the errors of options that the chosen strategy does not read, which are then off; None to
            raise the first one.

    Raises:
        OptionError: if an option is unknown, out of range, in conflict, or not read by the chosen strategy.
    """
    if user is not None and not isinstance(user, GenerationConfig):
        raise OptionError("config", user, "must be an unspool.GenerationConfig", "give options as keywords instead")
    given = dict(options)
    strategy = None if isinstance(given.get("strategy"), str | None) else given.pop("strategy")
    if strategy is not None:
        _check_strategy(strategy)
    own = CallerObjects(
        strategy=None if strategy is None else as_strategy(strategy),
        assistant=read_assistant(given.pop("assistant_model", None)),
        beginning=read_decoder_prompt(given),
        processors=_objects("processors", given.pop("processors", None), ("name", "start", "advance", "fork", "apply")),
        criteria=_objects("criteria", given.pop("criteria", None), ("name", "start", "advance", "ends")),
        cache_salt=_salt(given.pop("cache_salt", "")),
    )
    config = resolve(
        given,
        user,
        stored,
        drop_in=drop_in,
        assistant=own.assistant is not None,
        custom=strategy.name if strategy else None,
        ignored=ignored,
    )
    if own.assistant is not None and strategy is None and not reads_assistant(config.strategy or "greedy"):
        allowed = f"is not read by the strategy {config.strategy}"
        name = own.assistant.runtime.info.name
        error = OptionError(
            "assistant_model", name, allowed, "leave it out, or let the options choose another strategy"
        )
        if ignored is None:
            raise error
        ignored.append(error)
        own = replace(own, assistant=None)
    return config, own


def _salt(given: Any) -> str:
    if not isinstance(given, str):
        raise OptionError("cache_salt", given, "must be a text", 'leave it out, or give "", for no salt')
    return given


def _objects(option: str, given: Any, needed: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the caller's objects as a tuple, after a check that each has the attributes of its base class."""
    if given is None:
        return ()
    protocol = {"processors": "Processor", "criteria": "Criterion", "strategy": "Strategy"}[option]
    hint = f"see unspool.protocols.{protocol} and docs/extending.md"
    if not isinstance(given, list | tuple):
        raise OptionError(option, given, f"must be a list of {protocol} objects", hint)
    for each in given:
        if isinstance(each, type):
            raise OptionError(option, f"the class {each.__name__}", "must hold objects", f"pass {each.__name__}()")
        missing = [name for name in needed if not hasattr(each, name)]
        if missing:
            raise OptionError(
                option, each, f"must hold objects with {', '.join(needed)} ({missing[0]} is missing)", hint
            )
    return tuple(given)


def _check_strategy(given: Any) -> None:
    """Check that the caller's strategy has the required members, with values that the engine knows."""
    _objects("strategy", (given,), ("name", "space", "max_branches", "run"))
    if not isinstance(given.name, str) or not given.name:
        raise OptionError("strategy", given, f"must have a text as `name`, not {given.name!r}", "set `name`")
    if given.space not in get_args(Space):
        allowed = f"must have a `space` out of {', '.join(get_args(Space))}, not {given.space!r}"
        raise OptionError("strategy", given.name, allowed, 'set `space`; most strategies have "logits"')


def plan_requests(
    prompts: Sequence[Any],
    config: GenerationConfig,
    own: CallerObjects,
    *,
    reader: Reader,
    detokenizer: Detokenizer | None,
    first: int = 0,
    tentative: bool = False,
    trace: bool = False,
    stops_in_prompt: bool = False,
) -> list[PlannedRequest]:
    """Return one planned request per prompt, in order.

    Args:
        prompts: items as `reader.split` returns them.
        config, own: as `resolve_options` returns them.
        reader: of the model.
        detokenizer: for stop strings; None without a tokenizer.
        first: index of the first prompt in the call.
        tentative, trace: as in Request.
        stops_in_prompt: True if a stop string can begin in the prompt.

    Raises:
        PromptError: if a prompt cannot be read.
        OptionError: if the model lacks something that an option needs.
    """
    shown, tokenizer, info = config, reader.tokenizer, reader.info
    beginning = own.beginning
    if "decoder_start_token_id" in config.requested:  # the model's own is known to its reader
        beginning = beginning._replace(decoder_start_token_id=config.decoder_start_token_id)
    if "bos_token_id" in config.requested:
        beginning = beginning._replace(bos_token_id=config.bos_token_id)
    if config.echo and reader.source is not None:
        hint = "leave it out; `prompt` of the result is the encoder's input"
        raise OptionError(
            "echo", True, f"is not possible for {info.name}: its output does not continue the prompt", hint
        )
    config = _with_forced_words(_with_token_breakers(config, tokenizer), tokenizer)
    if own.assistant is not None:
        check_vocabulary(own.assistant, tokenizer, info.vocab_size)
        check_source(own.assistant, reader.source)
    config = _without_unknown_ids(config, info)
    criteria = _criteria(config, own, detokenizer, in_prompt=stops_in_prompt)
    grammar = _grammar(config, tokenizer, info)
    jobs = []
    for index, (prompt, seed) in enumerate(zip(prompts, _seeds(config.seed, len(prompts)), strict=True), first):
        ids, text, source = reader.read(prompt, beginning, index)
        strategy = own.strategy or STRATEGIES[config.strategy or "greedy"]
        if config.echo and config.logprobs is not None:
            strategy = WithPromptScores(strategy, config.logprobs)
        negative, negative_source = _negative(ids, config, own, reader, index)
        request = Request(
            prompt=ids,
            config=config,
            seed=seed,
            strategy=strategy,
            processors=own.processors,
            criteria=criteria,
            source=source,
            assistant=own.assistant.runtime if own.assistant is not None else None,
            negative_prompt=negative,
            negative_source=negative_source,
            tentative=tentative,
            trace=trace,
            grammar=grammar,
            cache_salt=own.cache_salt,
        )
        jobs.append(PlannedRequest(request=request, prompt_text=text, config=shown, model=info.name))
    return jobs


def _grammar(config: GenerationConfig, tokenizer: Any, info: ModelInfo) -> CompiledGrammar | None:
    """Return the compiled grammar of the output; None if no option sets one."""
    option = grammar_option(config)
    if option is None:
        return None
    from unspool.grammars import compile_grammar  # loads llguidance, which most requests do not need

    return compile_grammar(option, getattr(config, option), tokenizer, info.vocab_size)


def _negative(
    ids: tuple[int, ...], config: GenerationConfig, own: CallerObjects, reader: Reader, index: int
) -> tuple[tuple[int, ...] | None, Source | None]:
    """Return the negative prompt of classifier-free guidance: token ids and encoder input; None for each if it is off.

    Raises:
        OptionError: if the model has an encoder and no `negative_prompt` is given for it.
    """
    scale = config.guidance_scale
    if scale is None or scale == 1.0:
        return None, None
    given = own.negative_prompts[index] if own.negative_prompts else config.negative_prompt
    if reader.source is None:
        if given is None:
            return ids[-1:], None
        asked = config.bos_token_id if "bos_token_id" in config.requested else None
        return encode(given, reader.tokenizer, reader.bos_token_id(DecoderPrompt(bos_token_id=asked))), None
    if given is None:
        allowed = f"needs `negative_prompt` for {reader.info.name}, as input of its encoder"
        raise OptionError("guidance_scale", scale, allowed, "give one, or leave this out")
    return ids, reader.read(given).source


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per prompt: the given one for all, the given ones, or fresh ones."""
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


def _criteria(
    config: GenerationConfig, own: CallerObjects, detokenizer: Detokenizer | None, *, in_prompt: bool
) -> tuple[Criterion, ...]:
    """Return the stopping criteria: stop strings first, then the caller's."""
    if not config.stop_strings:
        return own.criteria
    if detokenizer is None:
        hint = "give `tokenizer=` to load(), or stop at token ids with `eos_token_id`"
        raise OptionError("stop_strings", config.stop_strings, "needs a tokenizer", hint)
    return (StopStrings(config.stop_strings, detokenizer, in_prompt=in_prompt), *own.criteria)


_MISSED: Final[Mapping[str, str]] = {
    "eos_token_id": "no token ends an output",
    "forced_bos_token_id": "nothing is forced",
    "forced_eos_token_id": "nothing is forced",
    "force_words_ids": "nothing is forced",
}
"""Stored options that do nothing if the vocabulary lacks their tokens, and the effect that users miss."""


def _without_unknown_ids(config: GenerationConfig, info: ModelInfo) -> GenerationConfig:
    """Drop the token ids of the model's stored config that its vocabulary lacks, and warn if that can surprise."""
    known = without_unknown_ids(config, info.vocab_size)
    for name, effect in _MISSED.items():
        value = getattr(config, name)
        if value is not None and getattr(known, name) is None:
            warnings.warn(
                f"{info.name}: the `{name}` stored in generation_config (generation_config.json) is {value!r}, outside "
                f"the vocabulary of {info.vocab_size} tokens, so {effect}; change it there, or give `{name}`",
                UserWarning,
                stacklevel=4,
            )
    return known


def _with_forced_words(config: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Encode forced words that are text, and append them to those given as token ids."""
    if not config.force_words:
        return config
    if tokenizer is None:
        hint = "give `tokenizer=` to load(), or `force_words_ids`"
        raise OptionError("force_words", config.force_words, "needs a tokenizer", hint)
    ids = forced_word_ids(config.force_words, tokenizer)
    return config.replace(force_words_ids=(*(config.force_words_ids or ()), *ids), force_words=None)


def _with_token_breakers(config: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Replace DRY's sequence breakers that are text by their last token id, for the processor."""
    breakers = config.dry_sequence_breakers
    if not config.dry_multiplier or not any(isinstance(breaker, str) for breaker in breakers or ()):
        return config
    if tokenizer is None:
        hint = "give `tokenizer=` to load(), or token ids as breakers"
        raise OptionError("dry_sequence_breakers", breakers, "holds text and needs a tokenizer", hint)
    # The "a" prevents a tokenizer from adding its mark for the start of a text to the breaker.
    encoded = [
        tokenizer("a" + breaker, add_special_tokens=False)["input_ids"][-1] if isinstance(breaker, str) else breaker
        for breaker in breakers or ()
    ]
    return config.replace(dry_sequence_breakers=tuple(dict.fromkeys(encoded)))
