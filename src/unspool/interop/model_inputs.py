"""Prompts of decoders with embeddings, images or audio: which arguments they are, and the batch that they make.

Owns: the choice of the arguments that the model's own forward reads, and of the module that decodes. Does not know: the
meaning of these arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from unspool.config import GenerationConfig
from unspool.errors import OptionError, PromptError
from unspool.interop.arguments import ENCODER, Arguments
from unspool.interop.batch import Batch, read_batch, readable_mask
from unspool.interop.encoders import encoder_of
from unspool.interop.semantics import pad_token
from unspool.runtimes.model_info import cache_names
from unspool.runtimes.seq2seq.source_info import has_prefix_image
from unspool.runtimes.wrap.passing_on import decoding_part
from unspool.runtimes.wrap.prompt_reader import prepared_call
from unspool.types import PromptInputs, Source

_BESIDE: Final = ("token_type_ids", "position_ids")
"""Arguments that belong to the tokens of a prompt. Alone they do not make it a prompt with media."""

_NOT_INPUTS: Final = frozenset(
    {
        *cache_names(),
        *("self", "args", "kwargs", "input_ids", "attention_mask", "labels", "use_cache", "cache_position"),
        *("next_sequence_length", "is_first_iteration", "logits_to_keep", "return_dict"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "encoder_outputs"),
        *(name for name in ENCODER if name.startswith("decoder_")),
    }
)


def decoding_call(model: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the module that decodes, and the arguments of the call for it.

    Some models, such as BLIP-2, have a `generate` of their own: it makes embeddings, and calls the `generate` of their
    language model. All other models decode themselves.

    Raises:
        ModelError: if the model's `generate` refuses the arguments, or decodes by other means.
    """
    given = _named(model, given)
    if decoding_part(model) is None:
        return model, given
    names = _parameters(type(model).generate) | {"input_ids", "attention_mask"}
    inputs = {name: value for name, value in given.items() if name in names and value is not None}
    with torch.no_grad():
        call = prepared_call(model, inputs)
    rest = {name: value for name, value in given.items() if name not in inputs}
    arguments = {name: call.arguments[name] for name in input_names(call.module) & call.arguments.keys()}
    mask = call.arguments.get("attention_mask")
    if call.module.config.is_encoder_decoder:
        return call.module, {**rest, **arguments, "attention_mask": mask}
    if mask is None:  # transformers drops a mask of ones
        columns = call.ids if call.ids.numel() else arguments["inputs_embeds"][..., 0]
        mask = torch.ones_like(columns, dtype=torch.int64)
    return call.module, {**rest, **arguments, "input_ids": call.ids, "attention_mask": mask}


def _named(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with an image or audio that is the first positional argument under its own name."""
    inputs, name = given.get("inputs"), model.main_input_name
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point() or name == "input_ids":
        return dict(given)
    if given.get(name) is not None or (decoding_part(model) is None and encoder_of(model) is not None):
        return dict(given)  # refused, or read with the other inputs of an encoder
    return {**given, "inputs": None, name: inputs}


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def input_names(model: Any) -> set[str]:
    """Return the arguments that the model's own `generate` passes on to its forward, beside ids, mask and cache."""
    return (_parameters(model.prepare_inputs_for_generation) | _parameters(model.forward)) - _NOT_INPUTS


def split_inputs(model: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a call in two parts: ids, options and encoder inputs; further inputs of the prompts.

    Token types and positions are further inputs if the prompts have images or audio. With embeddings alone they
    continue in the output, so they stay in the first part.
    """
    is_plain = encoder_of(model) is None or (has_prefix_image(model) and given.get("inputs_embeds") is not None)
    names = input_names(model) if is_plain else {"inputs_embeds"}
    inputs = {name: value for name, value in given.items() if name in names and value is not None}
    if not any(isinstance(value, torch.Tensor | list | tuple) for name, value in inputs.items() if name not in _BESIDE):
        return dict(given), {}  # switches of the forward alone, such as XLNet's `use_mems`
    if inputs.keys() <= {"inputs_embeds", *_BESIDE}:
        inputs = {name: value for name, value in inputs.items() if name not in _BESIDE}
    return {name: value for name, value in given.items() if name not in inputs}, inputs


def with_cache_of_embeddings(arguments: Arguments, config: GenerationConfig) -> GenerationConfig:
    """Return the options of a decoder's call; with `inputs_embeds` transformers sets `use_cache=True` in all calls."""
    if arguments.embedded.get("inputs_embeds") is None or config.extras.get("use_cache") is not False:
        return config
    return config.replace(use_cache=True)


def read_embedded(arguments: Arguments, config: GenerationConfig, ignored: list[OptionError] | None = None) -> Batch:
    """Return the prompts of a decoder that reads further inputs beside token ids.

    Args:
        arguments: of the call, with `embedded`; without `input_ids` the prompts are `inputs_embeds` alone.
        config: resolved.
        ignored: as in `read_batch`.

    Raises:
        PromptError: if the tensors do not fit together.
    """
    ids, inputs = arguments.input_ids, arguments.embedded
    embeds = inputs.get("inputs_embeds")
    if ids is None or (isinstance(ids, torch.Tensor) and not ids.numel()):
        return _read_embeds(embeds, arguments, ignored)
    batch = read_batch(
        ids,
        arguments.attention_mask,
        pad_token_id=pad_token(config),
        eos_token_ids=config.eos_token_id or (),
        ignored=ignored,
    )
    if embeds is not None and embeds.shape[:2] != ids.shape:
        shapes = f"{tuple(embeds.shape)} and `input_ids` {tuple(ids.shape)}"
        raise PromptError(f"`inputs_embeds` {shapes} must have as many rows and columns; leave out one of the two")
    assert batch.attention_mask is not None, "a batch that was read has a mask"
    mask = batch.attention_mask.long().to(ids.device)
    inputs = {**inputs, "input_ids": batch.input_ids, "attention_mask": mask}
    return replace(batch, sources=_sources(mask, inputs, batch.prompts))


def _sources(mask: torch.Tensor, inputs: Mapping[str, Any], token_ids: Sequence[tuple[int, ...]]) -> tuple[Source, ...]:
    """Return one source per row of a batch, without padding if each input has the rows and columns of the mask."""
    if bool(mask.all()) or any(not _is_aligned(value, mask) for value in inputs.values()):
        shared = PromptInputs(_padded_left(mask, inputs))
        return tuple(Source(inputs=shared, token_ids=ids, row=row) for row, ids in enumerate(token_ids))
    sources = []
    for row, ids in enumerate(token_ids):
        kept = mask[row].bool()
        own = {name: value[row : row + 1, kept.to(value.device)] for name, value in inputs.items()}
        sources.append(Source(inputs=PromptInputs(own), token_ids=ids))
    return tuple(sources)


def _is_aligned(value: Any, mask: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape


def _padded_left(mask: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with all padding on the left, in every tensor with the rows and columns of the mask."""
    order = mask.argsort(dim=1, stable=True)
    if bool((order.diff(dim=1) > 0).all()):
        return dict(inputs)

    def moved(value: Any) -> Any:
        if not _is_aligned(value, mask):
            return value
        places = order.to(value.device).reshape(*mask.shape, *[1] * (value.ndim - 2))
        return value.gather(1, places.expand_as(value))

    return {name: moved(value) for name, value in inputs.items()}


def _read_embeds(embeds: Any, arguments: Arguments, ignored: list[OptionError] | None) -> Batch:
    """Return prompts of embeddings alone. The runtime is fed zeros in place of token ids."""
    if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3 or not embeds.shape[1]:
        got = "nothing" if embeds is None else f"shape {tuple(getattr(embeds, 'shape', ()))}"
        names = ", ".join(f"`{name}`" for name in arguments.embedded)
        raise PromptError(f"give `input_ids` beside {names}, or `inputs_embeds` [rows, width, size]; got {got}")
    rows, width = embeds.shape[:2]
    mask = arguments.attention_mask
    mask = torch.ones(rows, width, dtype=torch.int64, device=embeds.device) if mask is None else mask
    if mask.shape != (rows, width):
        raise PromptError(f"`attention_mask` must have the shape {(rows, width)} of `inputs_embeds`")
    mask = readable_mask(mask, ignored).long()
    # transformers counts the rows of the first tensor, and those of pixels can be more.
    inputs = {"inputs_embeds": embeds, **arguments.embedded, "attention_mask": mask}
    return Batch(
        input_ids=torch.empty(rows, 0, dtype=torch.int64, device=embeds.device),
        prompts=tuple((0,) * count for count in mask.bool().sum(dim=1).tolist()),
        sources=_sources(mask, inputs, [()] * rows),
        attention_mask=mask.bool(),
        embedded_width=width,
    )
