"""unspool.generate: the drop-in replacement of `model.generate` for loaded transformers models.

Owns: reading the arguments of a call. Does not know: decoding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from unspool.config import GenerationConfig
from unspool.engines import driver_of
from unspool.errors import ModelError, OptionError
from unspool.interop.arguments import KNOWN, Arguments, read_config, sort_arguments, with_current_names
from unspool.interop.batch import Batch, batch_of_bos, read_batch
from unspool.interop.decode import Call, Returned, decode
from unspool.interop.encoders import (
    check_plain,
    encoder_of,
    forward_inputs,
    is_irregular,
    read_sources,
    source_of,
    with_default_input,
)
from unspool.interop.ignored import ignored_options, warn_of_ignored
from unspool.interop.lenient import lenient
from unspool.interop.model_inputs import decoding_call, read_embedded, split_inputs, with_cache_of_embeddings
from unspool.interop.own_forward import (
    decoder_inputs,
    prepare,
    read_prepared,
    reads_own_forward,
    split_forward_arguments,
    without_drafts,
)
from unspool.interop.semantics import build_call, on_batch, pad_token, with_cache, with_known_ids
from unspool.interop.streaming import streaming
from unspool.interop.transformers_objects import placed
from unspool.interop.whisper.arguments import windowed_call, without_zero_temperature
from unspool.interop.whisper.returned import encoded_once
from unspool.interop.whisper.transcribe import transcribe
from unspool.planning import resolve_options
from unspool.protocols import Runtime
from unspool.runtimes.wrap.model_copy import input_device
from unspool.runtimes.wrap.peft_models import base_of


def generate(
    model: Any,
    inputs: torch.Tensor | None = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: torch.Tensor | None = None,
    negative_prompt_attention_mask: torch.Tensor | None = None,
    custom_generate: Any = None,
    *,
    strict: bool = False,
    count_pads: bool = False,
    **options: Any,
) -> Returned:
    """Continue a batch of prompts as `model.generate(inputs, ...)` does: the same arguments, the same tokens.

    The model stays untouched and always runs in evaluation mode. Each call uses the model's current weights.

    Pads are never fed, and neither penalties nor n-gram rules see them. Without `seed`, each row of a sampling call
    draws its seed from `unspool.set_seed`, else from torch's default generator. So `torch.manual_seed` and
    `transformers.set_seed` make calls repeatable, but the sampled tokens differ from transformers'. Outputs end at the
    model's maximum length. Options that the strategy does not read are ignored with one warning. docs/transformers.md
    lists all differences.

    Args:
        model: a loaded causal language model of transformers, or a model with an encoder: a text encoder-decoder,
            Whisper, or an image captioning model.
        inputs: [rows, width] of integers, padded on the left; None for the model's begin-of-sequence token.
            For an encoder-decoder these are the encoder inputs, padded on either side. Audio and images can be given
            here, or as `input_features` and `pixel_values`. `input_ids=` is another name for it.
        generation_config: transformers' GenerationConfig or ours; overrides the model's own.
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn: get the same batch as in transformers.
        synced_gpus, custom_generate: refused if set.
        assistant_model: a loaded model with the same vocabulary, to draft tokens; None for none.
        streamer: an object with put and end, for every strategy; None for none.
        negative_prompt_ids, negative_prompt_attention_mask: the negative prompts for `guidance_scale`.
        strict: True to raise an OptionError instead of ignoring an option or converting a value, such as 6.0 to 6.
        count_pads: True to run the batch as transformers does, pads included. Models with learned positions, such as
            BartForCausalLM, count pads as positions there. The speed is transformers' too.
        options: `attention_mask` [rows, width], 1 for tokens and 0 for pads. None for no pads. For prompts, None also
            works if `pad_token_id` marks the pads and is not an end-of-sequence token. Options of GenerationConfig,
            which override all configs. Rules and defaults are transformers': 20 new tokens, greedy unless
            do_sample=True, `max_length` and `min_length` count pads. Further options: `seed`; `tokenizer`, for options
            that hold text; `strategy`, `processors` and `criteria` as in LanguageModel.generate. For encoder-decoders
            `decoder_input_ids` [rows, width], one length for all rows. For Whisper `language` and `task`.

    Returns:
        [rows * num_return_sequences, width + longest output] int64 on the device of `inputs`: each prompt as given,
        then its output, then pads. Outputs of one prompt are adjacent. The pad is `pad_token_id`, else the first
        end-of-sequence token. With return_dict_in_generate=True a GenerateDecoderOnlyOutput: `sequences`; if requested,
        `scores` (after the processors) and `logits` (before them), one [rows, vocab] float32 per step. Rows that have
        ended hold 0 for the pad and -inf elsewhere; `attentions` and `hidden_states` as in transformers; `cache`
        (`past_key_values` before transformers 5.24), a cache of all tokens but the newest, computed when it is first
        used. With beams a GenerateBeamDecoderOnlyOutput, best first: `sequences`, `sequences_scores`, `beam_indices`,
        and `scores` and `logits` with one row per beam. For encoder-decoders the rows begin with the decoder prompt,
        and the classes are GenerateEncoderDecoderOutput and GenerateBeamEncoderDecoderOutput. A tensor of Whisper's
        holds neither the decoder prompt nor the end token.

    Warns:
        UserWarning: if options are ignored; the message names them. If an output lacks forced words; the message names
            the row and the reason.

    Raises:
        ModelError: if the model is not supported.
        PromptError: if the tensors are not a batch of prompts; with strict=True if it is not padded on the left only.
        OptionError: if an option is unknown, refused or out of range, or with strict=True not read.
        CapacityError: if a request can never fit in the limits.
        NumericsError: if the model's logits are NaN, or every token is forbidden.
        StrategyError: if the options leave fewer outputs than `num_return_sequences`.

    Example:
        inputs = tokenizer(["Once upon", "The king"], padding=True, return_tensors="pt")
        sequences = unspool.generate(model, **inputs, max_new_tokens=30)
    """
    ignored = ignored_options(strict)
    options |= {
        "inputs": inputs,
        "logits_processor": logits_processor,
        "stopping_criteria": stopping_criteria,
        "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
        "synced_gpus": synced_gpus,
        "assistant_model": assistant_model,
        "streamer": streamer,
        "negative_prompt_ids": negative_prompt_ids,
        "negative_prompt_attention_mask": negative_prompt_attention_mask,
        "custom_generate": custom_generate,
    }
    with streaming(streamer):
        check_model(model)
        inner, given = decoding_call(base_of(model), with_current_names(options if strict else lenient(options)))
        general, embedded = split_inputs(inner, given)
        forward = split_forward_arguments(inner, general, KNOWN)
        general = {name: value for name, value in general.items() if name not in forward}
        arguments = sort_arguments(general, embedded)
        stored = GenerationConfig.from_transformers(inner.generation_config)
        user = read_config(generation_config, stored, strict=strict)
        info = encoder_of(inner)
        windows = None if info is None else windowed_call(inner, info, arguments, generation_config, ignored)
        if info is not None and windows is not None:
            if count_pads:
                raise OptionError("count_pads", True, "has no meaning for audio in windows", "leave it out")
            return transcribe(inner, info, windows, user, stored, ignored)
        repeats = 1
        if info is not None and info.speech is not None:
            arguments, repeats = without_zero_temperature(inner, arguments, generation_config)
        call = _read(inner, arguments, forward, user, stored, ignored, count_pads=count_pads)
        driver = driver_of(inner) if call.own_forward is None else call.own_forward.driver()
        known = with_known_ids(call.config, driver.engine.runtime.info.vocab_size, ignored)
        warn_of_ignored(ignored, stacklevel=2)
        return encoded_once(decode(driver, replace(call, config=known)), repeats)


def check_model(model: Any) -> None:
    """Check that an object is a generating model of transformers. The runtime checks the rest later.

    Raises:
        ModelError: if it is not.
    """
    name = type(model).__name__
    if not hasattr(model, "generation_config") or not hasattr(model, "config"):
        raise ModelError(f"{name} is not a transformers model that generates")


def _read(
    model: Any,
    arguments: Arguments,
    forward: dict[str, Any],
    user: GenerationConfig | None,
    stored: GenerationConfig,
    ignored: list[OptionError] | None,
    *,
    count_pads: bool,
) -> Call:
    """Return the call with its arguments read.

    forward: arguments that only the model's own forward reads. user: the call's generation config. stored: the model's
    own. ignored: as in `resolve_options`. count_pads: as in `generate`.
    """
    config, own = resolve_options(arguments.options, user, stored, drop_in=True, ignored=ignored)
    info, prepared = source_of(model, arguments), None
    on_own_forward = count_pads or reads_own_forward(config, forward) or is_irregular(model, arguments, info)
    if on_own_forward:
        config, own = without_drafts(config, own, ignored)
    if info is None:
        check_plain(arguments, model)
        inputs = {**decoder_inputs(arguments), **forward}
        if arguments.embedded:
            config = with_cache_of_embeddings(arguments, config)
            batch = read_embedded(arguments, config, ignored)
        elif on_own_forward:
            prepared, batch = read_prepared(prepare(model, inputs, config, tokenizer=arguments.tokenizer), ignored)
        else:
            batch = _batch(arguments, config, input_device(model), ignored)
        if prepared is None and batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask.long().to(batch.input_ids.device)
    else:
        runtime = partial(_runtime_of, model)
        arguments = with_default_input(model, arguments, config, info)
        batch = read_sources(model, arguments, config, info=info, runtime=runtime, ignored=ignored)
        inputs = {**forward_inputs(arguments, info, batch), **forward}
    has_prefix = arguments.prefix_allowed_tokens_fn is not None
    processors = placed(arguments.logits_processor, config, prefix=has_prefix)
    call = build_call(arguments, batch, config, own, processors, ignored)
    prepared_by = partial(prepare, model, inputs, config, tokenizer=arguments.tokenizer)
    return (
        on_batch(model, call, prepared or prepared_by(), source=info)
        if on_own_forward
        else with_cache(call, model, prepared_by)
    )


def _runtime_of(model: Any) -> Runtime:
    return driver_of(model).engine.runtime


def _batch(
    arguments: Arguments, config: GenerationConfig, device: torch.device, ignored: list[OptionError] | None
) -> Batch:
    """Return the prompts of the call. device: of the model's token ids. ignored: as in `read_batch`."""
    if arguments.input_ids is None:
        return batch_of_bos(config.bos_token_id, device)
    return read_batch(
        arguments.input_ids,
        arguments.attention_mask,
        arguments.position_ids,
        pad_token_id=pad_token(config),
        eos_token_ids=config.eos_token_id or (),
        ignored=ignored,
    )
