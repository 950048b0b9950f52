"""unspool.generate: the drop-in for `model.generate` on a loaded transformers model, tensors in and tensors out.

Owns: how the arguments of a call are read. Does not know: how a call is decoded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from unspool.config import GenerationConfig
from unspool.engines import driver_of
from unspool.errors import ModelError
from unspool.interop.arguments import Arguments, read_config, sort_arguments
from unspool.interop.batch import Batch, batch_of_bos, read_batch
from unspool.interop.decode import Call, Returned, decode
from unspool.interop.encoders import check_plain, encoder_of, read_sources
from unspool.interop.semantics import build_call, pad_token
from unspool.interop.streaming import streaming
from unspool.interop.transformers_objects import placed
from unspool.planning import resolve_options
from unspool.protocols import Runtime
from unspool.runtimes.wrap.model_copy import input_device
from unspool.runtimes.wrap.peft_models import base_of


def generate(
    model: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    generation_config: Any = None,
    **options: Any,
) -> Returned:
    """Write on from a batch of prompts, as `model.generate(input_ids, ...)` does: the same options, the same tokens.

    The model stays untouched and is always run in evaluation mode; training steps between calls are seen.

    Pads are never fed, and neither penalties nor n-grams see them. Without `seed`, each row of a sampling call draws
    its seed from `unspool.set_seed`, or else from torch's default generator, so that `torch.manual_seed` and
    `transformers.set_seed` make calls repeatable; the draws themselves are not transformers'. Outputs end at the
    model's longest length. An option that would have no effect is an error; docs/transformers.md has all differences.

    Args:
        model: a loaded causal language model of transformers, or one that reads a source: an encoder-decoder for text,
            Whisper, or a model that captions images.
        input_ids: [rows, width] of integers, left-padded; None for one row of the model's begin-of-sequence token. To
            an encoder-decoder these are the sources, padded on either side; audio and images go here or into
            `input_features` and `pixel_values`. `inputs=` is another name for it.
        attention_mask: [rows, width], 1 for tokens and 0 for pads; None where there are no pads, or, for prompts, where
            `pad_token_id` tells them and is no end-of-sequence token.
        generation_config: transformers' GenerationConfig or ours; comes before the model's own.
        options: options of GenerationConfig, which come first, under transformers' rules and defaults: 20 new tokens,
            greedy unless do_sample=True, `max_length` and `min_length` count pads. Besides: `seed`; `tokenizer`, for
            options that hold text; `streamer`, anything with put and end, for every strategy; `logits_processor`,
            `stopping_criteria` and `prefix_allowed_tokens_fn`, which see the batch as transformers shows it;
            `assistant_model`, a loaded model of the same vocabulary; `negative_prompt_ids` and
            `negative_prompt_attention_mask` for `guidance_scale`; `strategy`, `processors` and `criteria` as in
            LanguageModel.generate. For encoder-decoders `decoder_input_ids` [rows, width], one length for all rows, and
            for Whisper `language` and `task`.

    Returns:
        [rows * num_return_sequences, width + longest output] int64 on the device of `input_ids`: prompts as given, the
        outputs of one prompt adjacent, each padded behind its end with `pad_token_id` or else the first end-of-sequence
        token. With return_dict_in_generate=True a GenerateDecoderOnlyOutput: `sequences`; `scores` (after the
        processors) and `logits` (before them) where asked, one [rows, vocab] float32 a step, in which rows that have
        ended hold 0 for the pad and -inf elsewhere; no cache. With beams a GenerateBeamDecoderOnlyOutput, best first:
        `sequences`, `sequences_scores`, `beam_indices`, and `scores` and `logits` with a row for each beam. Rows of
        encoder-decoders begin with what the decoder begins with, and their classes are GenerateEncoderDecoderOutput and
        GenerateBeamEncoderDecoderOutput; a tensor of Whisper's holds neither that beginning nor the end.

    Warns:
        UserWarning: an output lacks forced words; the message names the row and the reason.

    Raises:
        ModelError: the model cannot run here. PromptError: the tensors are no left-padded batch.
        OptionError: an option is unknown, refused, out of range, or would be ignored.
        CapacityError: a request can never fit. NumericsError: the model's logits are not numbers.
        StrategyError: what may be written leaves fewer outputs than are to be returned.

    Example:
        inputs = tokenizer(["Once upon", "The king"], padding=True, return_tensors="pt")
        sequences = unspool.generate(model, **inputs, max_new_tokens=30)
    """
    with streaming(options.get("streamer")):
        arguments = sort_arguments({"input_ids": input_ids, "attention_mask": attention_mask, **options})
        check_model(model)
        inner = base_of(model)
        call = _read(inner, arguments, generation_config, GenerationConfig.from_transformers(model.generation_config))
        return decode(driver_of(inner), call)


def check_model(model: Any) -> None:
    """Refuse what is no generating model; the last word has the runtime, once the options are read.

    Raises:
        ModelError: so it is.
    """
    name = type(model).__name__
    if not hasattr(model, "generation_config") or not hasattr(model, "config"):
        raise ModelError(f"{name} is not a transformers model that generates")


def _read(model: Any, arguments: Arguments, generation_config: Any, stored: GenerationConfig) -> Call:
    """Return the call that the arguments ask for. stored: the model's own generation config."""
    config, own = resolve_options(arguments.options, read_config(generation_config, stored), stored, drop_in=True)
    info = encoder_of(model)
    if info is None:
        check_plain(arguments.encoder, model)
        batch = _batch(arguments, config, input_device(model))
    else:
        runtime = partial(_runtime_of, model)
        batch = read_sources(model, arguments, config, info=info, runtime=runtime)
    has_prefix = arguments.prefix_allowed_tokens_fn is not None
    return build_call(arguments, batch, config, own, placed(arguments.logits_processor, config, prefix=has_prefix))


def _runtime_of(model: Any) -> Runtime:
    return driver_of(model).engine.runtime


def _batch(arguments: Arguments, config: GenerationConfig, device: torch.device) -> Batch:
    """Return the prompts of the call. device: where the model expects token ids."""
    if arguments.input_ids is None:
        return batch_of_bos(config.bos_token_id, device)
    return read_batch(
        arguments.input_ids,
        arguments.attention_mask,
        arguments.position_ids,
        pad_token_id=pad_token(config),
        eos_token_ids=config.eos_token_id or (),
    )
