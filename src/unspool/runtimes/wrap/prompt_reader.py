"""Reads multimodal prompts: embeddings, images, audio, and further arguments of the model's forward.

The model's own `generate` prepares the arguments of the first forward (features of images and audio, positions, masks)
and hands them to a `custom_generate` function. So each model reads prompts by its own code, and a batch in one call.
Knows no sequences and no slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.utils.generic import ModelOutput

from unspool.errors import ModelError
from unspool.runtimes.model_info import cache_argument, cache_names
from unspool.runtimes.wrap.call_state import usable_rows
from unspool.runtimes.wrap.hooks import HeadHook, LayerHook, LayerRow, output_layer
from unspool.runtimes.wrap.prompt_batch import PromptBatch, PromptRow
from unspool.types import Feed

_KEPT_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


class PreparedCall(NamedTuple):
    """The arguments that a model's own `generate` has prepared for its first forward.

    module: the module that decodes; BLIP-2, for example, passes the call on to its language model. ids: [rows, width],
    or [rows, 0] if the prompts are only embeddings. arguments: all others by name.
    """

    module: Any
    ids: torch.Tensor
    arguments: dict[str, Any]


def prepared_call(module: Any, inputs: Mapping[str, Any]) -> PreparedCall:
    """Return the first forward that the model's own `generate` would make of these arguments. No decoder layer runs.

    Raises:
        ModelError: if the model refuses the arguments; the message says why.
    """
    found: list[PreparedCall] = []

    def capture(inner: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
        for name in ("logits_processor", "stopping_criteria", "generation_config"):
            given.pop(name, None)
        found.append(PreparedCall(inner, ids, given))
        return ids

    with _plain_config(module) as config, _refusals(module):
        type(module).generate(module, **inputs, generation_config=config, custom_generate=capture)
    if not found:
        raise ModelError(f"{type(module).__name__} has a `generate` of its own that decodes by other means")
    return found[-1]


@contextmanager
def _refusals(module: Any) -> Iterator[None]:
    """Raise a model's errors about its arguments as ModelError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ModelError(f"{type(module).__name__} cannot read the prompt: {error}") from error


@contextmanager
def _plain_config(module: Any) -> Iterator[GenerationConfig]:
    """Replace the module's generation config inside the context by its special tokens alone."""
    own = module.generation_config
    tokens = {name: getattr(own, name, None) for name in _KEPT_TOKENS}
    module.generation_config = GenerationConfig(max_new_tokens=1, **tokens)  # type: ignore[no-untyped-call]
    try:
        yield module.generation_config
    finally:
        module.generation_config = own


class PromptReader:
    """Reads batches of prompts with a module.

    Args:
        module: a causal language model, with its own attention.
        layers: the decoder layers, if the head can read the states between them; else None.
        reads_head: True if the head reads the states of all positions.
        narrows: True if the head can be made to read the asked positions only.
    """

    def __init__(self, module: Any, layers: Sequence[Any] | None, *, reads_head: bool, narrows: bool) -> None:
        self._module, self._layers = module, layers
        self._reads_head, self._narrows = reads_head, narrows

    def read(self, inputs: Mapping[str, Any], feeds: Sequence[Feed], cache: Any = None) -> PromptBatch:
        """Run the model's first forward over a batch of prompts.

        Args:
            inputs: arguments of the model's `generate`, with `attention_mask`.
            feeds: the prompts to return rows for; each has its row in `source`. The last token of every row of the
                batch is returned too.
            cache: an empty cache to fill; None for the cache that the model's `generate` makes.

        Raises:
            ModelError: if the model refuses the arguments, or if a prompt takes more positions than it has tokens.
        """
        call = prepared_call(self._module, _placed(inputs, self._module))
        if call.module is not self._module:
            raise ModelError(f"{type(self._module).__name__} decodes with {type(call.module).__name__}: use that")
        arguments = dict(call.arguments)
        if cache is not None:
            arguments[cache_argument(self._module)] = cache
        places = _places(call)
        wanted = _wanted(places, feeds)
        if "logits_to_keep" in arguments:
            arguments["logits_to_keep"] = 0
        forward = self._module.prepare_inputs_for_generation(call.ids, is_first_iteration=True, **arguments)
        return self._run(call, arguments, forward, places, wanted)

    def _run(
        self,
        call: PreparedCall,
        arguments: dict[str, Any],
        forward: dict[str, Any],
        places: Sequence[torch.Tensor],
        wanted: Sequence[_Wanted],
    ) -> PromptBatch:
        width = _width(call)
        flat = [row * width + int(places[row][index]) for row, each in enumerate(wanted) for index in each.asked]
        inner = [
            LayerRow(row * width + int(places[row][index]), layer)
            for row, each in enumerate(wanted)
            for index, layer in each.inner
        ]
        hidden = any(each.hidden for each in wanted)
        keep = torch.tensor(flat, device=call.ids.device)
        with ExitStack() as hooks:
            head = None
            if self._reads_head and (self._narrows or hidden):
                hook = HeadHook(output_layer(self._module), keep if self._narrows else None)
                head = hooks.enter_context(hook)
            layers = hooks.enter_context(LayerHook(self._layers or (), inner)) if inner else None
            hooks.enter_context(_refusals(self._module))
            output = self._module(**forward, return_dict=True)
        logits = output.logits.flatten(0, 1)
        if head is None or not self._narrows:
            if len(logits) != len(places) * width:
                raise ModelError(
                    f"{type(self._module).__name__} returns {len(logits)} rows for a batch of {len(places)} x {width} "
                    "tokens: not supported in this version"
                )
            logits = logits[keep.to(logits.device)]
        states = None
        if hidden and head is not None and head.states is not None:
            states = usable_rows(head.states.reshape(len(places), width, -1))
        between = None if layers is None else usable_rows(output_layer(self._module)(layers.states()[None])[0])
        later = self._later(arguments, output)
        positions = self._next_positions(call, output, later, len(places))
        rows = _rows(places, positions, wanted, usable_rows(logits), states, between)
        return PromptBatch(tuple(rows), width, _cache_of(output, arguments), later)

    def _later(self, arguments: dict[str, Any], output: Any) -> dict[str, Any]:
        """Return the arguments after the first forward, as `generate` keeps them, without media and cache."""
        later = next_arguments(self._module, output, arguments, 1)
        caches = cache_names()
        return {name: value for name, value in later.items() if name not in caches and not _is_media(value)}

    def _next_positions(
        self, call: PreparedCall, output: Any, later: Mapping[str, Any], count: int
    ) -> list[int | None]:
        """Return the position of the token after each row, by the model's own preparation of the next forward."""
        ids = torch.cat([call.ids, call.ids.new_zeros(count, 1)], dim=1)
        cached = {name: value for name in cache_names() if (value := getattr(output, name, None)) is not None}
        inputs = self._module.prepare_inputs_for_generation(ids, next_sequence_length=1, **cached, **later)
        positions = inputs.get("position_ids")
        if positions is None:
            return [None] * count
        # With several axes the first of four is that of the text; the others rotate.
        axes = positions[..., -1].reshape(-1, positions.shape[-2])
        axes = (axes[1:] if len(axes) == 4 else axes).expand(-1, count)
        if bool((axes != axes[:1]).any()):
            name = type(self._module).__name__
            raise ModelError(f"{name} needs a text token at the end of the prompt, after the last image")
        return [int(position) for position in axes[0]]


class _Wanted(NamedTuple):
    """The rows to return of one prompt, by index of the token (and layer)."""

    asked: tuple[int, ...]
    inner: tuple[tuple[int, int], ...]
    hidden: bool


def next_arguments(module: Any, output: Any, arguments: Mapping[str, Any], num_new: int) -> dict[str, Any]:
    """Return the arguments for `num_new` further tokens, by the model's own rules. output: of the last forward."""
    output = ModelOutput() if output is None else output  # type: ignore[no-untyped-call]
    found: dict[str, Any] = module._update_model_kwargs_for_generation(
        output, dict(arguments), is_encoder_decoder=False, num_new_tokens=num_new
    )
    return found


def _placed(inputs: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """Return the inputs with their tensors on the module's device, and floats in its dtype."""

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(module.device)
        return value.to(module.dtype) if value.is_floating_point() else value

    return {name: place(value) for name, value in inputs.items()}


def _is_media(value: Any) -> bool:
    """Return True for embeddings, pixels and features, which only the first forward reads: floats, not ids or masks."""
    return isinstance(value, Mapping) or (isinstance(value, torch.Tensor) and value.is_floating_point())


def _width(call: PreparedCall) -> int:
    """Return the number of columns of the batch, with padding."""
    embeds = call.arguments.get("inputs_embeds")
    return int(call.ids.shape[1] if embeds is None else embeds.shape[1])


def _places(call: PreparedCall) -> list[torch.Tensor]:
    """Return the columns of each row that are not padding."""
    rows, width = call.ids.shape[0], _width(call)
    mask = call.arguments.get("attention_mask")
    if mask is None:
        return [torch.arange(width, device=call.ids.device)] * rows
    if mask.shape != (rows, width):
        shapes = f"{(rows, width)} of the prompts, got {tuple(mask.shape)}"
        raise ModelError(f"`attention_mask` must have the shape {shapes}")
    return [row.nonzero()[:, 0] for row in mask]


def _wanted(places: Sequence[torch.Tensor], feeds: Sequence[Feed]) -> list[_Wanted]:
    """Return the rows to compute per row of the batch."""
    asked = [{len(each) - 1} for each in places]
    layers: list[set[tuple[int, int]]] = [set() for _ in places]
    names = {layer for feed in feeds for layer in feed.layers}
    for feed in feeds:
        assert feed.source is not None, "a prompt that is read has a source"
        row = feed.source.row
        if len(feed.tokens) != len(places[row]):
            raise ModelError(f"a prompt has {len(feed.tokens)} token ids and its inputs {len(places[row])}")
        asked[row] |= set(feed.asked)
    for row, indices in enumerate(asked):
        layers[row] = {(index, layer) for index in indices for layer in names}
    hidden = any(feed.hidden for feed in feeds)
    return [
        _Wanted(tuple(sorted(each)), tuple(sorted(pairs)), hidden) for each, pairs in zip(asked, layers, strict=True)
    ]


def _rows(
    places: Sequence[torch.Tensor],
    positions: Sequence[int | None],
    wanted: Sequence[_Wanted],
    logits: torch.Tensor,
    states: torch.Tensor | None,
    between: torch.Tensor | None,
) -> Iterator[PromptRow]:
    rows, inner = iter(logits), iter(() if between is None else between)
    for number, (columns, each) in enumerate(zip(places, wanted, strict=True)):
        yield PromptRow(
            columns,
            positions[number],
            {index: next(rows) for index in each.asked},
            None if states is None else states[number, columns.to(states.device)],
            {place: next(inner) for place in each.inner},
        )


def _cache_of(output: Any, arguments: Mapping[str, Any]) -> Any:
    """Return the filled cache: of the output, else the given one, which the model fills in place."""
    for name in cache_names():
        found = getattr(output, name, None)
        found = arguments.get(name) if found is None else found
        if found is not None:
            return found
    return None
