"""unspool.decoding_method: our engine inside `model.generate(..., custom_generate=unspool.decoding_method)`.

Owns: reading a call that transformers has prepared: rows expanded, options turned into processors and criteria.
Does not know: decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from transformers import GenerationConfig as TransformersConfig
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import ALL_CACHE_NAMES

from unspool.config import OPTIONS, GenerationConfig
from unspool.engines import driver_of
from unspool.errors import OptionError
from unspool.inputs.sources import source_rows
from unspool.interop.arguments import KNOWN, sort_arguments
from unspool.interop.batch import read_batch
from unspool.interop.decode import Call, Returned, decode
from unspool.interop.drop_in import check_model
from unspool.interop.encoders import encoder_of, is_irregular, prepared_sources, source_of
from unspool.interop.ignored import ignored_options, level_outside_transformers, warn_of_ignored
from unspool.interop.lenient import lenient
from unspool.interop.model_inputs import read_embedded, split_inputs
from unspool.interop.own_forward import (
    STATES,
    cached_length,
    read_prepared,
    reads_own_forward,
    without_drafts,
)
from unspool.interop.semantics import build_call, on_batch, with_cache, with_known_ids
from unspool.interop.streaming import streaming
from unspool.interop.transformers_objects import prepared
from unspool.planning import resolve_options
from unspool.runtimes.generic.prepared_batch import PreparedBatch
from unspool.runtimes.seq2seq.source_info import has_prefix_image

_DONE: Final = ("watermarking_config", "token_healing", "max_time", "stop_strings", "max_length", "max_new_tokens")
"""Options that transformers has applied before it calls us, or has turned into an object or a number."""

_EXPANDED: Final = ("attention_mask", "decoder_attention_mask", "position_ids", "pixel_values")
"""Tensors with one row per beam or output."""

_EMBEDS: Final = "inputs_embeds"

_MEDIA: Final = (_EMBEDS, "pixel_values", "input_features")
"""Inputs of a decoder's prompt, which its own forward reads."""

_OTHER: Final = frozenset(
    {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "tokenizer", "streamer", "assistant_model"}
    | {"processors", "criteria", "strategy", "synced_gpus"}
)
"""Arguments that are neither options nor arguments of the model's forward."""

_USUAL: Final = frozenset(
    {*ALL_CACHE_NAMES, *_EXPANDED, "encoder_outputs", "use_cache", "logits_to_keep", "input_features", "language"}
    | {"task", "decoder_input_ids", *STATES}
)
"""Arguments of the model's forward that every call can have."""

_OURS: Final = (
    *(name for name, row in OPTIONS.items() if row.source == "unspool" and row.door != "native"),
    "processors",
    "criteria",
)
"""Options that transformers does not know; it passes on only those in our signature."""


def _signature(function: Any) -> inspect.Signature:
    """Return its signature with our own options as named parameters, which transformers requires."""
    found = inspect.signature(function)
    *named, rest = found.parameters.values()
    options = (inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _OURS)
    return found.replace(parameters=[*named, *options, rest])


def decoding_method(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    inputs_tensor: Any = None,
    *,
    strict: bool = False,
    **model_kwargs: Any,
) -> Returned:
    """Decode a call that `model.generate` has prepared: give it as `custom_generate=unspool.decoding_method`.

    Options are those of `unspool.generate`, our own and `strict` included; transformers reads its own first. The engine
    expands rows and makes processors and criteria itself, so it undoes those of transformers. The caller's
    `logits_processor`, `stopping_criteria` and `prefix_allowed_tokens_fn` stay. The engine reads the encoder's output
    that transformers passes on, which can be the caller's own `encoder_outputs`.

    transformers does not pass on `streamer`, `tokenizer` and `assistant_model`, and without a tokenizer it refuses
    `stop_strings`. Bind the first three with functools.partial(unspool.decoding_method, streamer=...), or use
    `unspool.generate`, which takes them all.

    Raises:
        UnspoolError: the same errors as unspool.generate.

    Example:
        model.generate(**inputs, custom_generate=unspool.decoding_method, penalty_alpha=0.6, top_k=4)
    """
    check_model(model)
    given = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria, **model_kwargs}
    ignored = ignored_options(strict)
    with streaming(given.get("streamer")):
        call = _read(model, input_ids, generation_config, given, inputs_tensor, ignored)
        driver = driver_of(model) if call.own_forward is None else call.own_forward.driver()
        known = with_known_ids(call.config, driver.engine.runtime.info.vocab_size, ignored)
        warn_of_ignored(ignored, stacklevel=level_outside_transformers())
        return decode(driver, replace(call, config=known))


decoding_method.__signature__ = _signature(decoding_method)  # type: ignore[attr-defined]


def _read(
    model: Any,
    input_ids: torch.Tensor,
    generation_config: Any,
    given: dict[str, Any],
    inputs_tensor: Any,
    ignored: list[OptionError] | None,
) -> Call:
    """Return the call that transformers has prepared.

    inputs_tensor: the encoder's input, one row per prompt. ignored: as in `resolve_options`.
    """
    if model.config.is_encoder_decoder:
        given.pop(_EMBEDS, None)  # the encoder has read them already
    forward = {name: value for name, value in given.items() if name in STATES or name not in (*_OTHER, *OPTIONS)}
    is_captioner = has_prefix_image(model) and given.get(_EMBEDS) is not None
    media = _MEDIA if encoder_of(model) is None or is_captioner else ()
    embeds = _plain_embeds(model, input_ids, given) if media else None
    given = {name: value for name, value in given.items() if name in KNOWN - {*media} or name not in forward}
    expanded = max(generation_config.num_beams, generation_config.num_return_sequences)
    states = None
    if model.config.is_encoder_decoder:
        encoded = given.pop("encoder_outputs", None)
        states = None if encoded is None else encoded[0][::expanded]
    else:
        given["attention_mask"] = _mask(given.get("attention_mask"), input_ids if embeds is None else embeds[..., 0])
    rows = {name: given[name][::expanded] for name in _EXPANDED if given.get(name) is not None}
    embedded = {} if embeds is None else {_EMBEDS: embeds[::expanded]}
    arguments = sort_arguments({**given, **rows, "input_ids": input_ids[::expanded]}, embedded)
    info = source_of(model, arguments)
    added = tuple(each for each in arguments.stopping_criteria if not _says_the_same(each, generation_config))
    processors = tuple(each for each in arguments.logits_processor if not _repeats_minimum(each, generation_config))
    negative = _negative_prompts(processors)
    arguments = replace(arguments, logits_processor=processors, stopping_criteria=added, **negative)
    options = {"max_new_tokens": generation_config.max_length - input_ids.shape[1], **arguments.options}
    done = {*_DONE, *(_beyond_generate(generation_config) if info is not None and info.kind == "audio" else ())}
    given_options = {name: value for name, value in _public(generation_config) if name not in done}
    # transformers has merged the model's stored options already, so the caller turned an option off if it is None.
    off = {name for name, value in given_options.items() if value is None and name in OPTIONS}
    if ignored is not None:
        given_options = lenient(given_options)
    user = GenerationConfig.from_stored(given_options).replace(**dict.fromkeys(off))
    stored = GenerationConfig.from_transformers(model.generation_config)
    config, own = resolve_options(options, user, stored, drop_in=True, ignored=ignored)
    expanded_batch = PreparedBatch(
        input_ids=input_ids, config=generation_config, arguments=forward, rows_per_prompt=expanded
    )
    further = {name: value for name, value in forward.items() if name not in embedded}
    has_media = any(further.get(name) is not None for name in media)
    on_own_forward = has_media or _reads_own_forward(config, further) or is_irregular(model, arguments, info)
    if on_own_forward:
        config, own = without_drafts(config, own, ignored)
    if model.config.is_encoder_decoder:
        assert info is not None, "an encoder-decoder has an encoder"
        batch = prepared_sources(arguments, info, inputs_tensor, arguments.input_ids, states)
    elif on_own_forward and info is None:
        expanded_batch, batch = read_prepared(expanded_batch, ignored)
    elif embedded:  # transformers has subtracted their width from all lengths
        batch = replace(read_embedded(arguments, config, ignored), embedded_width=None)
    else:
        batch = read_batch(arguments.input_ids, arguments.attention_mask, arguments.position_ids, ignored=ignored)
        if info is not None:
            batch = replace(batch, sources=tuple(source_rows(arguments.encoder, info)))
    call = build_call(arguments, batch, config, own, prepared(arguments.logits_processor, config), ignored)
    if on_own_forward:
        return on_batch(model, call, expanded_batch, source=info)
    return with_cache(call, model, lambda rows: expanded_batch, rows=expanded)


def _plain_embeds(model: Any, input_ids: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the embeddings of a decoder's prompts, one for each token id if there are ids; None for other prompts."""
    inputs = split_inputs(model, given)[1]
    embeds = inputs.get(_EMBEDS)
    if embeds is None or len(inputs) > 1 or (input_ids.numel() and embeds.shape[:2] != input_ids.shape):
        return None
    assert isinstance(embeds, torch.Tensor), "transformers has read them"
    return embeds


def _reads_own_forward(config: GenerationConfig, forward: Mapping[str, Any]) -> bool:
    """Return whether a call needs the model's own forward. forward: its arguments, with those of every call."""
    caches = [forward[name] for name in ALL_CACHE_NAMES if forward.get(name) is not None]
    is_callers = any(cached_length(cache) or getattr(cache, "_is_user_defined", False) for cache in caches)
    further = {name: value for name, value in forward.items() if name not in _USUAL and value is not None}
    return is_callers or reads_own_forward(config, further)


def _mask(given: torch.Tensor | None, columns: torch.Tensor) -> torch.Tensor:
    """Return the mask; transformers leaves out a mask of ones. columns: [rows, width], of any values."""
    return torch.ones_like(columns, dtype=torch.int64) if given is None else given


def _says_the_same(criterion: Any, generation_config: Any) -> bool:
    """Return whether transformers made this criterion from the options for length and end tokens."""
    if type(criterion) is MaxLengthCriteria:
        return bool(criterion.max_length == generation_config.max_length)
    if type(criterion) is EosTokenCriteria:
        return _ids(criterion.eos_token_id) == _ids(generation_config.eos_token_id)
    return False


def _repeats_minimum(processor: Any, generation_config: Any) -> bool:
    """Return whether a processor is the second processor that transformers makes from `min_new_tokens`."""
    return (
        type(processor) is MinLengthLogitsProcessor
        and generation_config.min_new_tokens is not None
        and processor.min_length == generation_config.min_length
    )


def _ids(tokens: Any) -> list[int]:
    found: list[int] = torch.as_tensor([] if tokens is None else tokens).flatten().tolist()
    return found


def _negative_prompts(processors: Sequence[Any]) -> dict[str, Any]:
    """Return the negative prompts, which transformers stores in a processor of its own."""
    for each in processors:
        if type(each) is UnbatchedClassifierFreeGuidanceLogitsProcessor:
            context = each.unconditional_context
            if context["input_ids"] is not None:
                mask = context["attention_mask"]
                return {"negative_prompt_ids": context["input_ids"], "negative_prompt_attention_mask": mask}
    return {}


def _beyond_generate(config: Any) -> set[str]:
    """Return the attributes that Whisper adds to its config: it calls us once per audio window."""
    plain: Any = TransformersConfig
    return set(vars(config)) - set(vars(plain()))


def _public(config: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(config).items() if not name.startswith("_")]
