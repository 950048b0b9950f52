"""From arguments and resolved options to a call, with transformers' meaning of lengths, ends, seeds, negative prompts.

Owns: the rules that the drop-in and the decoding method share. Does not know: the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from transformers import ForcedEOSTokenLogitsProcessor

from unspool.config import GenerationConfig
from unspool.config.vocabulary import without_unknown_ids
from unspool.errors import OptionError
from unspool.interop.arguments import Arguments
from unspool.interop.batch import Batch, read_batch
from unspool.interop.decode import Call
from unspool.interop.deferred_cache import CacheSource
from unspool.interop.own_forward import run_on_own_forward
from unspool.interop.processors import PREFIX
from unspool.interop.transformers_objects import TransformersObjects, with_criteria, without_replaced
from unspool.planning import CallerObjects
from unspool.runtimes.generic.prepared_batch import PreparedBatch
from unspool.seeds import shared_seed
from unspool.source_info import SourceInfo

_COMPARED: Final = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens")
"""Options with ids that transformers only compares with outputs, so ids outside the vocabulary do nothing."""


def build_call(
    arguments: Arguments,
    batch: Batch,
    config: GenerationConfig,
    own: CallerObjects,
    processors: Mapping[str, tuple[Any, ...]],
    ignored: list[OptionError] | None = None,
) -> Call:
    """Return the call.

    Args:
        config: resolved, lengths as given.
        processors: objects of transformers by their place in the chain.
        ignored: as in `resolve_options`.

    Raises:
        OptionError: if options do not fit together, or do not fit the batch.
    """
    pad_token_id, count = pad_token(config), len(batch.prompts)
    config = without_replaced(config, processors)
    if batch.task == "transcribe" and config.max_length is not None:
        config = config.replace(max_new_tokens=config.max_length, max_length=None)
    config = with_lengths_of(config, batch.width)
    if ignored is not None:
        config = with_feasible_lengths(config, ignored)
    options = config
    config, criteria = with_criteria(options, arguments.stopping_criteria, batch.width)
    if config.max_new_tokens != options.max_new_tokens:
        processors = with_forced_end(processors, options, batch)
    config = seeded(config, own, count)
    prefix = None if PREFIX in processors else arguments.prefix_allowed_tokens_fn
    call = Call(
        batch=batch,
        config=config,
        caller_objects=with_negative_prompts(own, arguments, config, batch, ignored),
        transformers_objects=TransformersObjects(
            processors=processors, criteria=criteria, prefix_allowed_tokens_fn=prefix
        ),
        streamer=arguments.streamer,
        tokenizer=arguments.tokenizer,
        pad_token_id=pad_token_id,
    )
    call.check()
    return call


def on_batch(model: Any, call: Call, prepared: PreparedBatch, *, source: SourceInfo | None) -> Call:
    """Return the call with its prompts read by the model's own forward, in a batch that transformers has prepared.

    source: facts about the model's encoder; None for a decoder.

    Raises:
        OptionError: if the caller's cache holds as many tokens as the prompts or more.
    """
    own = run_on_own_forward(model, prepared, call.batch, pad_token_id=call.pad_token_id, source=source)
    return replace(call, own_forward=own)


def with_cache(call: Call, model: Any, prepare: Callable[[int], PreparedBatch], *, rows: int | None = None) -> Call:
    """Return the call with the source of the cache in its result.

    prepare: see `CacheSource`. rows: the only number of rows per prompt that it can prepare; None for any number.
    """
    if not call.config.return_dict_in_generate:
        return call
    count = len(call.batch.prompts)
    source = CacheSource(model=model, prepare=prepare, config=call.config, num_prompts=count, rows=rows)
    return replace(call, cache_source=source)


def pad_token(config: GenerationConfig) -> int | None:
    """Return the token that pads rows: the padding token, else the first end-of-sequence token, else None."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    return config.eos_token_id[0] if config.eos_token_id else None


def with_lengths_of(config: GenerationConfig, width: int) -> GenerationConfig:
    """Return the options with lengths that count output only, instead of the width of the batch."""
    changes: dict[str, Any] = {}
    if config.max_length is not None:
        if config.max_length <= width:
            allowed = f"counts the prompt and its pads too and must be more than their {width} tokens"
            raise OptionError("max_length", config.max_length, allowed, "raise it or use `max_new_tokens`")
        changes |= {"max_new_tokens": config.max_length - width, "max_length": None}
    if config.min_length is not None:
        changes |= {"min_new_tokens": max(0, config.min_length - width), "min_length": None}
    if config.forced_bos_token_id is not None and width > 1:
        changes["forced_bos_token_id"] = None
    if not config.eos_token_id:
        # The runtime reads end tokens from the model's config; transformers reads only the generation config.
        changes["ignore_eos"] = True
    return config.replace(**changes) if changes else config


def with_feasible_lengths(config: GenerationConfig, ignored: list[OptionError]) -> GenerationConfig:
    """Return the options with a least length within the length limit; collects the error of one beyond it."""
    least, most = config.min_new_tokens, config.max_new_tokens
    if least is None or most is None or least <= most:
        return config
    if not any(error.option in ("min_length", "min_new_tokens") for error in ignored):
        allowed = f"is {least} new tokens and must be at most the length limit of {most} new tokens"
        hint = "lower it, or raise `max_length` or `max_new_tokens`"
        ignored.append(OptionError("min_length", least, allowed, hint))
    return config.replace(min_new_tokens=most)


def with_forced_end(
    processors: Mapping[str, tuple[Any, ...]], config: GenerationConfig, batch: Batch
) -> Mapping[str, tuple[Any, ...]]:
    """Return the processors with an end forced at the options' own length, if a criterion sets another length.

    transformers forces `forced_eos_token_id` at the length of the options, which MaxLengthCriteria does not change.
    """
    option, length = "forced_eos_token_id", config.max_new_tokens
    if config.forced_eos_token_id is None or length is None or option in processors:
        return processors
    device = str(batch.input_ids.device)
    forced = ForcedEOSTokenLogitsProcessor(batch.width + length, list(config.forced_eos_token_id), device)
    return {**processors, option: (forced,)}


def seeded(config: GenerationConfig, own: CallerObjects, count: int) -> GenerationConfig:
    """Return the options with a seed. Without sampling, torch's generator stays untouched."""
    if config.seed is not None:
        return config
    if not config.do_sample and own.strategy is None:
        return config.replace(seed=0)
    return config.replace(seed=tuple(shared_seed() for _ in range(count)))


def with_known_ids(config: GenerationConfig, vocab_size: int, ignored: list[OptionError] | None) -> GenerationConfig:
    """Return the options without the caller's token ids outside the vocabulary that transformers only compares.

    Negative ids are the common form of "no token". Greater ids are collected as errors.

    Args:
        ignored: as in `resolve_options`; with None the ids stay and the engine raises.
    """
    if ignored is None:
        return config
    names = [name for name in _COMPARED if name not in config.stored]
    for name in names:
        beyond = [token for token in getattr(config, name) or () if token >= vocab_size]
        if beyond:
            allowed = f"holds {beyond}, outside the vocabulary of {vocab_size} tokens"
            ignored.append(OptionError(name, beyond, allowed, "use ids of this model's own tokenizer"))
    return without_unknown_ids(config, vocab_size, names)


def with_negative_prompts(
    own: CallerObjects,
    arguments: Arguments,
    config: GenerationConfig,
    batch: Batch,
    ignored: list[OptionError] | None,
) -> CallerObjects:
    """Return the caller's objects with the negative prompts of the call: one for all rows, or one per row."""
    if arguments.negative_prompt_ids is None:
        return own
    shown = f"shape {tuple(getattr(arguments.negative_prompt_ids, 'shape', ()))}"
    if config.guidance_scale is None or config.guidance_scale == 1.0:
        allowed = "is read only together with `guidance_scale`"
        error = OptionError("negative_prompt_ids", shown, allowed, "set it, or leave this out")
        if ignored is None:
            raise error
        ignored.append(error)
        return own
    mask, count = arguments.negative_prompt_attention_mask, len(batch.prompts)
    if batch.sources and mask is not None:
        rows = zip(arguments.negative_prompt_ids, mask.bool(), strict=True)  # sources are padded on either side
        prompts = tuple(tuple(ids[kept].tolist()) for ids, kept in rows)
    else:
        prompts = read_batch(arguments.negative_prompt_ids, mask, ignored=ignored).prompts
    if len(prompts) not in (1, count):
        allowed = f"must have one row, or one for each of the {count} prompts"
        raise OptionError("negative_prompt_ids", shown, allowed, "give one row per prompt")
    return replace(own, negative_prompts=prompts if len(prompts) == count else prompts * count)
