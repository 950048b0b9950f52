"""Calls that read or feed the model's own forward: attentions, hidden states, caches, further arguments.

Owns: which calls these are, their preparation by transformers, and the fields of their result. Does not know: how the
batch runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from transformers import GenerationConfig as TransformersConfig
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS
from transformers.generation.utils import GenerationMixin

from unspool.config import OPTIONS, GenerationConfig, option_status
from unspool.engine import Engine
from unspool.engine.driver import Driver
from unspool.errors import OptionError
from unspool.interop.arguments import CACHE, Arguments
from unspool.interop.batch import Batch, readable_mask
from unspool.interop.batch_layout import BatchLayout
from unspool.interop.processors import GUIDANCE
from unspool.planning import CallerObjects
from unspool.runtimes.generic.prepared_batch import PreparedBatch, PreparedBatchRuntime, cache_name_of
from unspool.runtimes.wrap.call_state import evaluating
from unspool.source_info import SourceInfo

STATES: Final = ("output_attentions", "output_hidden_states")
"""Options that are arguments of the model's forward too."""

_CACHE_OPTIONS: Final = ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size")
_DRAFTING: Final = ("assisted", "prompt_lookup")
_EXACT_CACHES: Final = frozenset({None, "dynamic", *ALL_STATIC_CACHE_IMPLEMENTATIONS})
"""Values of `cache_implementation` that change no token, so that only the result has such a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnForward:
    """The batch of such a call."""

    runtime: PreparedBatchRuntime

    def driver(self) -> Driver:
        """Return a driver over the batch."""
        return Driver(Engine(self.runtime))

    def follow(self, layout: BatchLayout) -> None:
        """Let the batch learn from the layout of the call which outputs have ended."""
        self.runtime.ended = layout.ended_outputs

    def fields(self, layout: BatchLayout) -> dict[str, Any]:
        """Return the fields of the result beside sequences and scores, laid out as `scores`."""
        steps, fields = self.runtime.steps, dict[str, Any]()
        for name in steps[0].fields:
            orders = (self._order(layout, step) for step in range(len(steps)))
            found = zip(steps, orders, strict=True)
            fields[name] = tuple(_in_order(step.fields[name], order) for step, order in found)
        encoded = self.runtime.arguments.get("encoder_outputs")
        for name in ("attentions", "hidden_states"):
            if encoded is not None and encoded.get(name) is not None:
                fields[f"encoder_{name}"] = encoded[name]
        return {**fields, CACHE: self.runtime.cache}

    def _order(self, layout: BatchLayout, step: int) -> list[int]:
        """Return for each row of `scores` at a step the row of the batch that it shows."""
        order = list(range(layout.num_rows))
        for batch_row, path in enumerate(layout.paths_at(step)):
            row = None if path is None else self.runtime.row_at(step, path.prompt, tuple(path.tokens))
            order[batch_row] = batch_row if row is None else row
        return order


def _in_order(value: Any, order: Sequence[int]) -> Any:
    """Return the tensors of a nested tuple with their rows in this order."""
    if isinstance(value, tuple | list):
        return tuple(_in_order(each, order) for each in value)
    if not isinstance(value, torch.Tensor) or len(value) != len(order) or list(order) == list(range(len(order))):
        return value
    return value[torch.tensor(order, device=value.device)]


# --- which calls ----------------------------------------------------------------------------------------------------


def split_forward_arguments(model: Any, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the arguments of a call that only the model's own forward reads.

    Args:
        given: the keyword arguments of the call.
        known: names that have another meaning here.
    """
    found = {}
    for name, value in given.items():
        if value is None or name in OPTIONS or name in known or option_status(name) != "unknown":
            continue
        try:
            model._validate_model_kwargs({name: value})
        except ValueError:
            continue
        found[name] = value
    return found


def reads_own_forward(config: GenerationConfig, forward: Mapping[str, Any]) -> bool:
    """Return whether a call needs the model's own forward.

    config: resolved. forward: arguments of the model's forward, without those that every call can have.
    """
    states = config.return_dict_in_generate and any(getattr(config, name) for name in STATES)
    kept = config.return_dict_in_generate and config.extras.get("cache_implementation") not in _EXACT_CACHES
    return bool(forward) or states or kept


def has_other_positions(arguments: Arguments) -> bool:
    """Return whether a decoder's call has positions that do not count the tokens of each row from 0."""
    given, read = arguments.position_ids, arguments.input_ids
    if not isinstance(read, torch.Tensor) or not read.numel():
        read = arguments.embedded.get("inputs_embeds")
    if not isinstance(given, torch.Tensor) or not isinstance(read, torch.Tensor):
        return False
    mask = arguments.attention_mask
    mask = torch.ones(read.shape[:2], dtype=torch.int64, device=read.device) if mask is None else mask
    return given.shape != mask.shape or bool(((given != mask.cumsum(dim=1) - 1) & mask.bool()).any())


def decoder_inputs(arguments: Arguments) -> dict[str, Any]:
    """Return the tensors of a decoder's call, as keyword arguments of transformers' `generate`."""
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return {**inputs, **arguments.embedded}


def without_drafts(
    config: GenerationConfig, own: CallerObjects, ignored: list[OptionError] | None
) -> tuple[GenerationConfig, CallerObjects]:
    """Return the options for a call on the model's own forward. Such a call reads token by token, without drafts.

    ignored: collects the errors of options that are then off; None to raise.

    Raises:
        OptionError: if the strategy needs more than the logits of one batch.
    """
    if config.guidance_scale not in (None, 1.0):
        allowed = "is not available together with attentions, hidden states, caches or arguments of the model's forward"
        raise OptionError(GUIDANCE, config.guidance_scale, allowed, "leave out one of the two")
    if config.strategy not in _DRAFTING:
        return config, own
    option = "prompt_lookup_num_tokens" if own.assistant is None else "assistant_model"
    allowed = "is not read by a call on the model's own forward; its tokens are the same without drafts"
    error = OptionError(option, config.strategy, allowed, "leave it out")
    if ignored is None:
        raise error
    ignored.append(error)
    plain = config.replace(strategy="sample" if config.do_sample else "greedy", prompt_lookup_num_tokens=None)
    return plain, replace(own, assistant=None)


# --- preparation ----------------------------------------------------------------------------------------------------


def prepare(
    model: Any, arguments: Mapping[str, Any], config: GenerationConfig, rows: int = 0, *, tokenizer: Any = None
) -> PreparedBatch:
    """Return the batch that transformers' `generate` makes of a call.

    Args:
        arguments: those of the model's forward; `inputs` for the first argument of `generate`.
        config: resolved, with lengths as given.
        rows: of each prompt; 0 for the number of beams or outputs.
        tokenizer: for stored options that hold text; None for none.
    """
    rows = rows or max(config.num_beams, config.num_return_sequences, config.best_of or 1)
    prepared: list[PreparedBatch] = []

    def keep(
        model: Any,
        input_ids: torch.Tensor,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        tokenizer: Any = None,
        **forward: Any,
    ) -> None:
        prepared.append(
            PreparedBatch(input_ids=input_ids, config=generation_config, arguments=forward, rows_per_prompt=rows)
        )

    length = "max_length" if config.max_new_tokens is None else "max_new_tokens"
    names = (length, "pad_token_id", "bos_token_id", "return_dict_in_generate", *STATES)
    wanted = {name: getattr(config, name) for name in names}
    wanted |= {name: config.extras[name] for name in _CACHE_OPTIONS if config.extras.get(name) is not None}
    for name in ("eos_token_id", "decoder_start_token_id"):
        ids = getattr(config, name)
        wanted[name] = ids[0] if ids is not None and len(ids) == 1 else ids and list(ids)
    encoded = arguments.get("encoder_outputs")
    if isinstance(encoded, Mapping):
        arguments = {**arguments, "encoder_outputs": type(encoded)(**encoded)}  # transformers expands its rows in place
    make: Any = TransformersConfig
    theirs = make(num_beams=rows, num_return_sequences=1, do_sample=False, **wanted)
    with evaluating(model):
        generate: Any = GenerationMixin.generate  # the class of a speech model has another one
        generate(model, generation_config=theirs, custom_generate=keep, tokenizer=tokenizer, **arguments)
    return prepared[0]


def run_on_own_forward(
    model: Any, prepared: PreparedBatch, batch: Batch, *, pad_token_id: int | None, source: SourceInfo | None
) -> OwnForward:
    """Return the batch, with its prompts read.

    Args:
        prepared: by transformers. batch: the same prompts.
        pad_token_id: read by rows that have ended.
        source: facts about the model's encoder; None for a decoder.

    Raises:
        OptionError: if the caller's cache holds as many tokens as the prompts or more.
    """
    _check_cache(prepared)
    runtime = PreparedBatchRuntime(
        model,
        prepared,
        prompts=batch.prompts,
        pad_token_id=pad_token_id,
        source=source,
        needs_source=bool(batch.sources),
    )
    return OwnForward(runtime=runtime)


def read_prepared(prepared: PreparedBatch, ignored: list[OptionError] | None) -> tuple[PreparedBatch, Batch]:
    """Return a decoder's batch that transformers has prepared with a token in every row, and its prompts.

    Embeddings without ids are fed as zeros in place of token ids.

    ignored: as in `read_batch`.
    """
    ids, mask = prepared.input_ids[:: prepared.rows_per_prompt], prepared.arguments.get("attention_mask")
    embeds = prepared.arguments.get("inputs_embeds")
    fed = ids.new_zeros(len(ids), embeds.shape[1]) if embeds is not None and not ids.numel() else ids
    if mask is None or mask.ndim != 2 or mask.shape[1] < fed.shape[1]:
        return prepared, Batch(input_ids=ids, prompts=tuple(map(tuple, fed.tolist())))
    given = mask[:: prepared.rows_per_prompt]
    whole = readable_mask(given, ignored)
    if not whole.equal(given.bool()):
        prepared = _with_mask(prepared, whole.repeat_interleave(prepared.rows_per_prompt, dim=0))
    shown = whole[:, -fed.shape[1] :].to(ids.device)
    prompts = tuple(tuple(row[kept].tolist()) for row, kept in zip(fed, shown, strict=True))
    return prepared, Batch(input_ids=ids, prompts=prompts, attention_mask=shown)


def _with_mask(prepared: PreparedBatch, mask: torch.Tensor) -> PreparedBatch:
    """Return the batch with another mask [rows, width]; rows that had no token count their positions from 0."""
    given = prepared.arguments["attention_mask"]
    arguments = {**prepared.arguments, "attention_mask": mask.to(given.dtype)}
    positions = arguments.get("position_ids")
    if isinstance(positions, torch.Tensor) and positions.shape == mask.shape:
        counted = torch.arange(mask.shape[1], device=positions.device, dtype=positions.dtype)
        arguments["position_ids"] = torch.where(given.any(dim=1)[:, None], positions, counted)
    return replace(prepared, arguments=arguments)


def _check_cache(batch: PreparedBatch) -> None:
    name = cache_name_of(batch.arguments)
    embeds = batch.arguments.get("inputs_embeds")
    width = max(batch.input_ids.shape[1], 0 if embeds is None else embeds.shape[1])
    length = cached_length(batch.arguments.get(name)) if name else 0
    mask = batch.arguments.get("decoder_attention_mask" if batch.arguments.get("encoder_outputs") else "attention_mask")
    total = width if mask is None else max(width, mask.shape[1])
    if name and length >= total:
        allowed = f"must hold fewer tokens than the {total} of the prompt"
        raise OptionError(name, f"a cache of {length} tokens", allowed, "give whole ids, or crop the cache")


def cached_length(cache: Any) -> int:
    """Return the number of tokens in a cache; 0 for recurrent states without a count."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return 0
