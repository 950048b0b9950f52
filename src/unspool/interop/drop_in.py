"""unspool.generate: the drop-in for `model.generate` on a loaded transformers model, tensors in and tensors out.

Owns: the order of one call, and transformers' meaning of lengths. Does not know: how tokens are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from unspool.config import GenerationConfig
from unspool.config.strategies import BEAMS
from unspool.engine import Request
from unspool.engine.driver import Driver
from unspool.errors import ModelError, OptionError, StrategyError
from unspool.interop.arguments import Arguments, read_config, sort_arguments
from unspool.interop.batch import Batch, batch_of_bos, read_batch
from unspool.interop.drivers import driver_of
from unspool.interop.record import Kept, Recorder, steps_of
from unspool.plan import Own, plan_jobs, resolve_options
from unspool.runtimes.families import supports
from unspool.runtimes.trees import input_device
from unspool.text.detokenize import Detokenizer
from unspool.types import ModelInfo, Output


def generate(
    model: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    generation_config: Any = None,
    **options: Any,
) -> torch.Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    """Write on from a batch of prompts, as `model.generate(input_ids, ...)` does: the same options, the same tokens.

    The model stays untouched and is always run in evaluation mode; training steps between calls are seen.

    Differences: pads are never fed, and neither penalties nor n-grams see them. Without `seed`, each row of a sampling
    call draws its seed from torch's default generator, so that `torch.manual_seed` and `transformers.set_seed` make
    calls repeatable; the draws themselves are not transformers'. Outputs end at the model's longest length. An option
    that would have no effect is an error.

    Args:
        model: a loaded causal language model of transformers.
        input_ids: [rows, width] of integers, left-padded; None for one row of the model's begin-of-sequence token.
            `inputs=` is another name for it.
        attention_mask: [rows, width], 1 for tokens and 0 for pads; None where there are no pads, or where
            `pad_token_id` tells them and is no end-of-sequence token.
        generation_config: transformers' GenerationConfig or ours; comes before the model's own.
        options: options of GenerationConfig, which come first, under transformers' rules and defaults: 20 new tokens,
            greedy unless do_sample=True, `max_length` and `min_length` count pads. Besides: `seed`; `tokenizer`, for
            options that hold text; `assistant_model`, a loaded model of the same vocabulary; `negative_prompt_ids` and
            `negative_prompt_attention_mask` for `guidance_scale`; `strategy`, `processors` and `criteria` as in
            LanguageModel.generate.

    Returns:
        [rows * num_return_sequences, width + longest output] int64 on the device of `input_ids`: prompts as given, the
        outputs of one prompt adjacent, each padded behind its end with `pad_token_id` or else the first end-of-sequence
        token. With return_dict_in_generate=True a GenerateDecoderOnlyOutput: `sequences`; `scores` (after the
        processors) and `logits` (before them) where asked, one [rows, vocab] float32 a step, in which rows that have
        ended hold 0 for the pad and -inf elsewhere; no cache. With beams a GenerateBeamDecoderOnlyOutput of `sequences`
        and `sequences_scores`, best first.

    Raises:
        ModelError: the model cannot run here. PromptError: the tensors are no left-padded batch.
        OptionError: an option is unknown, refused, out of range, or would be ignored.
        CapacityError: a request can never fit. NumericsError: the model's logits are not numbers.
        StrategyError: what may be written leaves fewer outputs than are to be returned.

    Example:
        inputs = tokenizer(["Once upon", "The king"], padding=True, return_tensors="pt")
        sequences = unspool.generate(model, **inputs, max_new_tokens=30)
    """
    if reason := supports(model):
        raise ModelError(reason)
    arguments = sort_arguments({"input_ids": input_ids, "attention_mask": attention_mask, **options})
    stored = GenerationConfig.from_transformers(model.generation_config)
    user = read_config(generation_config, stored)
    config, own = resolve_options(arguments.options, user, stored, drop_in=True)
    kept = _kept(config, own)
    pad_token_id = _pad_token(config)
    batch = _batch(arguments, config, pad_token_id, input_device(model))
    config = _seeded(_with_lengths_of(config, batch.width), own, len(batch.prompts))
    own = _with_negative_prompts(own, arguments, config, len(batch.prompts))
    driver = driver_of(model)
    requests = _requests(batch, config, own, arguments.tokenizer, driver.engine.runtime.info)
    recorders = [Recorder(request, kept) for request in requests] if kept else []
    groups = _run(driver, [each.recorded() for each in recorders] or requests)
    sequences = batch.sequences([output.token_ids for group in groups for output in group], pad_token_id)
    if not config.return_dict_in_generate:
        return sequences
    if config.strategy in BEAMS:
        scores = torch.tensor([output.score for group in groups for output in group], device=sequences.device)
        return GenerateBeamDecoderOnlyOutput(
            sequences=cast(torch.LongTensor, sequences), sequences_scores=cast(torch.FloatTensor, scores)
        )
    steps: dict[str, Any] = {}
    for name in kept:
        rows = [row for each, group in zip(recorders, groups, strict=True) for row in each.rows(name, group)]
        steps[name] = steps_of(rows, pad_token_id, sequences.device)
    return GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, sequences), **steps)


def _pad_token(config: GenerationConfig) -> int | None:
    if config.pad_token_id is not None:
        return config.pad_token_id
    return config.eos_token_id[0] if config.eos_token_id else None


def _batch(arguments: Arguments, config: GenerationConfig, pad_token_id: int | None, device: torch.device) -> Batch:
    """Return the prompts of the call. device: where the model expects token ids."""
    if arguments.input_ids is None:
        return batch_of_bos(config.bos_token_id, device)
    return read_batch(
        arguments.input_ids,
        arguments.attention_mask,
        arguments.position_ids,
        pad_token_id=pad_token_id,
        eos_token_ids=config.eos_token_id or (),
    )


def _with_lengths_of(config: GenerationConfig, width: int) -> GenerationConfig:
    """Return the options for rows without their pads, where those given speak of the width of the batch."""
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
        # The runtime knows the tokens of the model's own config; transformers reads the generation config alone.
        changes["ignore_eos"] = True
    return config.replace(**changes) if changes else config


def _seeded(config: GenerationConfig, own: Own, count: int) -> GenerationConfig:
    """Return the options with a seed; torch's generator is left alone where nothing can be drawn."""
    if config.seed is not None:
        return config
    if not config.do_sample and own.strategy is None:
        return config.replace(seed=0)
    return config.replace(seed=tuple(torch.randint(2**63 - 1, (count,), device="cpu").tolist()))


def _with_negative_prompts(own: Own, arguments: Arguments, config: GenerationConfig, count: int) -> Own:
    """Return the caller's own with the negative prompts of the call: one for all rows, or one for each."""
    if arguments.negative_prompt_ids is None:
        return own
    shown = f"shape {tuple(getattr(arguments.negative_prompt_ids, 'shape', ()))}"
    if config.guidance_scale is None or config.guidance_scale == 1.0:
        allowed = "is read only together with `guidance_scale`"
        raise OptionError("negative_prompt_ids", shown, allowed, "set it, or leave this out")
    mask = arguments.negative_prompt_attention_mask
    prompts = read_batch(arguments.negative_prompt_ids, mask).prompts
    if len(prompts) not in (1, count):
        allowed = f"must have one row, or one for each of the {count} prompts"
        raise OptionError("negative_prompt_ids", shown, allowed, "give as many as prompts")
    return replace(own, negative_prompts=prompts if len(prompts) == count else prompts * count)


def _requests(batch: Batch, config: GenerationConfig, own: Own, tokenizer: Any, info: ModelInfo) -> list[Request]:
    """Return a request for each prompt."""
    if tokenizer is None and config.stop_strings:
        allowed = "needs a tokenizer to read text with"
        raise OptionError("stop_strings", config.stop_strings, allowed, "give the model's own as `tokenizer=`")
    detokenizer = Detokenizer(tokenizer) if config.stop_strings else None
    jobs = plan_jobs(
        batch.prompts,
        config,
        own,
        tokenizer=tokenizer,
        detokenizer=detokenizer,
        info=info,
    )
    return [job.request for job in jobs]


def _kept(config: GenerationConfig, own: Own) -> list[Kept]:
    """Return which rows the call wants back."""
    options: dict[Kept, str] = {"scores": "output_scores", "logits": "output_logits"}
    names = [name for name, option in options.items() if getattr(config, option)]
    if names and config.strategy in BEAMS:
        allowed = f"is not available with the strategy {config.strategy} in this version"
        raise OptionError(options[names[0]], True, allowed, "leave it out; `sequences_scores` are there")
    if names and own.strategy is not None:
        allowed = f"is not available with a strategy of your own ({own.strategy.name})"
        raise OptionError(options[names[0]], True, allowed, "leave it out, or have the strategy ask for types.Whole")
    return names


def _run(driver: Driver, requests: Sequence[Request]) -> list[Sequence[Output]]:
    """Run the requests together; the first error cancels the others and is raised."""
    groups: list[Sequence[Output]] = [finished.outputs for finished in driver.finish(requests)]
    wanted = max(requests[0].config.num_return_sequences, *map(len, groups))
    for row, group in enumerate(groups):
        if len(group) < wanted:
            raise StrategyError(
                f"row {row}: {requests[0].strategy.name} found {len(group)} outputs and {wanted} are to fill a tensor; "
                "forbid fewer tokens or lower `num_return_sequences`"
            )
    return groups
