"""The cache of encoder outputs: cross-attention keys and values per source, shared by all sequences that read it.

Owns how each kind of model encodes a source, and which sequences use the result or can still use it. Knows neither
slots nor decoding.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch.overrides import has_torch_function_unary
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from unspool.errors import ModelError
from unspool.runtimes.model_info import cache_argument
from unspool.tuning import MAX_BATCH_SOURCES, MAX_IDLE_SOURCES
from unspool.types import Seq, Source

KeysValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"
"""A pair per layer, each [sources, heads, positions, width]."""


@dataclass(eq=False, slots=True)
class EncodedSource:
    """The encoder output of one source.

    number: unique. source: a weak reference. keys, values: per layer, [1, heads, length, width]. version: of the
    weights that computed them. num_uses: live sequences that read them. stand_ins: keys and values of one position.
    """

    number: int
    source: weakref.ref[Source]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    version: int
    num_uses: int = 0
    stand_ins: KeysValues = field(init=False)

    def __post_init__(self) -> None:
        self.stand_ins = [(key[:, :, :1], value[:, :, :1]) for key, value in zip(self.keys, self.values, strict=True)]

    @property
    def length(self) -> int:
        """Number of positions that can be attended to."""
        return self.keys[0].shape[2]


class SourceTable:
    """The cache of encoder outputs.

    After its last sequence has ended, an output waits for further requests with the same Source object. It is freed
    with that object, or if more than `max_idle` outputs wait. So detecting the language of a window and transcribing it
    at several temperatures encode it once.

    Args:
        max_idle: most outputs without a sequence, at least 0.
    """

    def __init__(self, max_idle: int = MAX_IDLE_SOURCES) -> None:
        self.of: dict[Seq, EncodedSource] = {}
        self._known: weakref.WeakKeyDictionary[Source, EncodedSource] = weakref.WeakKeyDictionary()
        self._max_idle = max_idle
        self._numbers = itertools.count(1)

    def find(self, source: Source, version: int) -> EncodedSource | None:
        """Return the output of this source object, if it was computed with these weights; else None."""
        found = self._known.get(source)
        return found if found is not None and found.version == version else None

    def make(self, source: Source, pairs: KeysValues, version: int) -> EncodedSource:
        """Return a new entry. Sequences take it by `hold`."""
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        return EncodedSource(next(self._numbers), weakref.ref(source), keys, values, version)

    def hold(self, seq: Seq, encoded: EncodedSource) -> None:
        """Assign the output to a new sequence."""
        assert seq not in self.of, f"sequence {seq} has a source"
        self.of[seq] = encoded
        encoded.num_uses += 1
        source = encoded.source()
        if source is not None:
            self._known[source] = encoded

    def release(self, seq: Seq) -> None:
        """Release a sequence. Does nothing for an unknown one."""
        encoded = self.of.pop(seq, None)
        if encoded is None:
            return
        encoded.num_uses -= 1
        if encoded.num_uses:
            return
        idle = [source for source, each in self._known.items() if not each.num_uses]
        for source in sorted(idle, key=lambda each: self._known[each].number)[: max(0, len(idle) - self._max_idle)]:
            del self._known[source]

    def check(self) -> None:
        """Assert that the counts of uses are right, and that few outputs wait."""
        outputs = {id(each): each for each in (*self.of.values(), *self._known.values())}.values()
        for encoded in outputs:
            count = sum(each is encoded for each in self.of.values())
            assert encoded.num_uses == count, f"source {encoded.number}: {encoded.num_uses} uses, {count} sequences"
        assert sum(not encoded.num_uses for encoded in outputs) <= self._max_idle, "too many sources wait"


class FirstStepKV(NamedTuple):
    """Keys and values of the decoder's first call. own: in self-attention. source: in cross-attention."""

    own: KeysValues
    source: KeysValues


class EncoderAdapter(Protocol):
    """How one kind of model encodes sources, and how its decoder is called with the result."""

    has_prefix: bool
    """True if the source precedes the tokens in the decoder's self-attention; False for cross-attention."""
    cache_argument: str
    """The name of the decoder's argument for its cache."""

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the encoder's output, or the inputs if the decoder encodes them. --> [sources, positions, width]"""
        ...

    def probe_states(self, count: int) -> torch.Tensor:
        """Return random states of `count` sources, for the probe."""
        ...

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the decoder on one token per source, and return its keys and values."""
        ...

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, FirstStepKV]:
        """Return the model's own logits of full sequences, [sources, tokens, vocab], and all keys and values."""
        ...

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Return the arguments of a forward call that appends ids, [rows, tokens], after `start` cached tokens."""
        ...


@dataclass
class EncoderOutput(BaseModelOutput):
    """The output of an encoder, as models accept it. router_logits: read by mixtures of experts (Switch, NLLB-MoE)."""

    router_logits: Any = None


class CrossAttentionAdapter:
    """Models with an encoder, and cross-attention in every decoder layer (T5, BART, Whisper, ...)."""

    has_prefix = False

    def __init__(self, module: Any) -> None:
        self._module, self._encoder = module, module.get_encoder()
        self.cache_argument = cache_argument(module)
        weights = next(self._encoder.parameters())
        self._dtype, self._device = weights.dtype, weights.device
        self._width = _width_of(module.config)
        self._stand_in: tuple[int, EncoderOutput | None] = (0, None)

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run the encoder, unless the inputs contain its output."""
        given = inputs.get("encoder_outputs")
        if given is not None:
            return given
        states: torch.Tensor = self._encoder(**inputs, return_dict=True).last_hidden_state
        return states

    def probe_states(self, count: int) -> torch.Tensor:
        """Return a random encoder output."""
        states = torch.randn(
            count, 5, self._width, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        )
        return states.to(self._device, self._dtype)

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the decoder on one token, which also computes the keys and values of the source."""
        return self.whole(states, torch.full((states.shape[0], 1), token, device=self._device))[1]

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, FirstStepKV]:
        """Run the decoder on an empty cache."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        encoded = EncoderOutput(last_hidden_state=states)
        options = {self.cache_argument: cache, "use_cache": True, "return_dict": True}
        logits = self._module(encoder_outputs=encoded, decoder_input_ids=ids, **options).logits
        return logits, FirstStepKV(_pairs(cache.self_attention_cache), _pairs(cache.cross_attention_cache))

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Return the ids with a stand-in for the encoder's output: the model ignores its values once K/V are cached."""
        (rows, stand_in), is_traced = self._stand_in, has_torch_function_unary(ids)
        if rows != len(ids) or is_traced:
            states = torch.zeros(len(ids), 1, self._width, dtype=self._dtype, device=self._device)
            stand_in = EncoderOutput(last_hidden_state=states)
            if not is_traced:
                self._stand_in = len(ids), stand_in
        return {"encoder_outputs": stand_in, "decoder_input_ids": ids}


def _width_of(config: Any) -> int:
    """Return the width of the encoder's output."""
    encoder = getattr(config, "encoder", config)
    found = (getattr(encoder, name, None) for name in ("d_model", "hidden_size"))
    return next(width for width in found if isinstance(width, int))


class PrefixAdapter:
    """GIT: a causal language model that caches its image before the text; the image has its own positions."""

    has_prefix = True

    def __init__(self, module: Any) -> None:
        self._module = module
        self.cache_argument = cache_argument(module)
        weights = next(module.parameters())
        self._dtype, self._device = weights.dtype, weights.device

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the pixels; `open` encodes the image."""
        return inputs["pixel_values"]

    def probe_states(self, count: int) -> torch.Tensor:
        """Return random pixels."""
        vision = self._module.config.vision_config
        shape = (count, vision.num_channels, vision.image_size, vision.image_size)
        return torch.randn(
            shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        ).to(self._device, self._dtype)

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the model on the image and one token. The K/V of the image do not depend on the token."""
        return self.whole(states, torch.full((states.shape[0], 1), token, device=self._device))[1]

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, FirstStepKV]:
        """Run the model on the image and the text, on an empty cache."""
        cache, count = DynamicCache(), ids.shape[1]
        options = {self.cache_argument: cache, "use_cache": True, "return_dict": True}
        logits = self._module(input_ids=ids, pixel_values=states, **options).logits
        pairs = _pairs(cache)
        own = [(key[:, :, -count:], value[:, :, -count:]) for key, value in pairs]
        source = [(key[:, :, :-count], value[:, :, :-count]) for key, value in pairs]
        return logits[:, -count:], FirstStepKV(own, source)

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Return ids and positions. Text positions start at 0 after the image."""
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        return {"input_ids": ids, "position_ids": positions.expand(ids.shape)}


def _pairs(cache: Any) -> KeysValues:
    return [(layer.keys, layer.values) for layer in cache.layers]


def adapter_of(module: Any) -> EncoderAdapter:
    """Return the adapter of a model that `source_obstacle` accepts."""
    return PrefixAdapter(module) if module.config.model_type == "git" else CrossAttentionAdapter(module)


def batches(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Yield the sources in groups with inputs of the same shapes, each source once."""
    groups: dict[Any, list[Source]] = {}
    for source in {id(source): source for source in sources}.values():
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(source.inputs.items()))
        groups.setdefault(shapes, []).append(source)
    for group in groups.values():
        for start in range(0, len(group), MAX_BATCH_SOURCES):
            yield group[start : start + MAX_BATCH_SOURCES]


def stacked(group: Sequence[Source], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the inputs of one group as one batch. Drops an attention mask that masks nothing."""
    inputs = {}
    for name in group[0].inputs:
        tensor = torch.cat([source.inputs[name] for source in group]).to(device)
        inputs[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    mask = inputs.get("attention_mask")
    if mask is not None and bool(mask.bool().all()):
        del inputs["attention_mask"]
    return inputs


def visible(pairs: KeysValues, row: int, mask: torch.Tensor | None) -> KeysValues:
    """Return one source's keys and values, without masked positions.

    Raises:
        ModelError: if the mask has another length than the encoder's output.
    """
    if mask is None:
        return [(key[row : row + 1], value[row : row + 1]) for key, value in pairs]
    kept = mask[row].bool()
    if len(kept) != pairs[0][0].shape[2]:
        raise ModelError(
            f"`attention_mask` must have one value per output of the encoder ({pairs[0][0].shape[2]}), got {len(kept)};"
            " remove the masked positions from the source instead"
        )
    return [
        (key[row : row + 1, :, kept.to(key.device)], value[row : row + 1, :, kept.to(key.device)])
        for key, value in pairs
    ]
