"""What a model makes of its source: keys and values, computed once and shared by every sequence that reads it.

Owns how each kind of model is asked to read, and which sequences still need the answer. Knows no slots and no decoding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from unspool.errors import ModelError
from unspool.types import Seq, Source

KeysValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"
"""A pair a layer, each [sources, heads, positions, width]."""

# Encoding more at once is hardly faster, and what lies between layers must fit into memory.
_MOST_TOGETHER = 16


@dataclass(eq=False, slots=True)
class EncodedSource:
    """What one source has become.

    number: never used twice. keys, values: a layer each, [1, heads, length, width]. version: of the weights that made
    them. num_uses: live sequences that read them.
    """

    number: int
    source: Source
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    version: int
    num_uses: int = 0

    @property
    def length(self) -> int:
        """Positions that can be attended."""
        return self.keys[0].shape[2]


class SourceTable:
    """Which live sequence reads which source. One that no sequence reads any longer is forgotten."""

    def __init__(self) -> None:
        self.of: dict[Seq, EncodedSource] = {}
        self._known: dict[int, EncodedSource] = {}
        self._numbers = itertools.count(1)

    def find(self, source: Source, version: int) -> EncodedSource | None:
        """Return what is known of this very source, if these weights made it."""
        found = self._known.get(id(source))
        return found if found is not None and found.version == version else None

    def make(self, source: Source, pairs: KeysValues, version: int) -> EncodedSource:
        """Return a new entry, which no sequence holds yet."""
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        return EncodedSource(next(self._numbers), source, keys, values, version)

    def hold(self, seq: Seq, encoded: EncodedSource) -> None:
        """Let a new sequence read it."""
        assert seq not in self.of, f"sequence {seq} has a source"
        self.of[seq] = encoded
        encoded.num_uses += 1
        # The entry holds the source, so that the id stays its own.
        self._known[id(encoded.source)] = encoded

    def release(self, seq: Seq) -> None:
        """Let the sequence go; an unknown one is no error."""
        encoded = self.of.pop(seq, None)
        if encoded is None:
            return
        encoded.num_uses -= 1
        if encoded.num_uses == 0 and self._known.get(id(encoded.source)) is encoded:
            del self._known[id(encoded.source)]

    def check(self) -> None:
        """Assert that every use is counted and nothing unused is kept."""
        for encoded in {id(each): each for each in (*self.of.values(), *self._known.values())}.values():
            count = sum(each is encoded for each in self.of.values())
            assert encoded.num_uses == count > 0, f"source {encoded.number}: {encoded.num_uses} uses, {count} sequences"


class FirstStepKV(NamedTuple):
    """Keys and values of a first token in self-attention, and those of the source."""

    own: KeysValues
    source: KeysValues


class EncoderAdapter(Protocol):
    """How one kind of model reads sources and is called with what it has read."""

    has_prefix: bool
    """Whether the source stands before the tokens in the decoder's own cache, rather than being attended across."""

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what stands between reading and the decoder's keys and values. --> [sources, positions, width]"""
        ...

    def trial_states(self, count: int) -> torch.Tensor:
        """Return random states of `count` short sources."""
        ...

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the decoder over one token for each source."""
        ...

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the model's own logits of whole sequences, without a cache. --> [sources, tokens, vocab]"""
        ...

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Return what the model is called with to append ids, [rows, tokens], behind `start` tokens."""
        ...


class CrossAttentionAdapter:
    """Models with an encoder, over whose output every decoder layer attends (T5, BART, Whisper, ...)."""

    has_prefix = False

    def __init__(self, module: Any) -> None:
        self._module, self._encoder = module, module.get_encoder()
        weights = next(self._encoder.parameters())
        self._dtype, self._device = weights.dtype, weights.device
        self._width = _width_of(module.config)

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run the encoder, unless its output is given."""
        given = inputs.get("encoder_outputs")
        if given is not None:
            return given
        states: torch.Tensor = self._encoder(**inputs, return_dict=True).last_hidden_state
        return states

    def trial_states(self, count: int) -> torch.Tensor:
        """Return random output of the encoder."""
        states = torch.randn(
            count, 5, self._width, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        )
        return states.to(self._device, self._dtype)

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the decoder over one token; the keys and values of the source are a by-product."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = torch.full((states.shape[0], 1), token, device=self._device)
        self._module(**self._arguments(states, ids), past_key_values=cache, use_cache=True, return_dict=True)
        return FirstStepKV(_pairs(cache.self_attention_cache), _pairs(cache.cross_attention_cache))

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Run the decoder without a cache."""
        logits: torch.Tensor = self._module(**self._arguments(states, ids), use_cache=False, return_dict=True).logits
        return logits

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Stand in for the encoder's output, of which only the presence matters once keys and values are cached."""
        return self._arguments(torch.zeros(len(ids), 1, self._width, dtype=self._dtype, device=self._device), ids)

    def _arguments(self, states: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "decoder_input_ids": ids}


def _width_of(config: Any) -> int:
    """Return the width of the encoder's output."""
    encoder = getattr(config, "encoder", config)
    found = (getattr(encoder, name, None) for name in ("d_model", "hidden_size"))
    return next(width for width in found if isinstance(width, int))


class PrefixAdapter:
    """GIT: a causal language model that caches its image in front of the text, at positions of its own."""

    has_prefix = True

    def __init__(self, module: Any) -> None:
        self._module = module
        weights = next(module.parameters())
        self._dtype, self._device = weights.dtype, weights.device

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the pixels: the image is read when the decoder is opened."""
        return inputs["pixel_values"]

    def trial_states(self, count: int) -> torch.Tensor:
        """Return random pixels."""
        vision = self._module.config.vision_config
        shape = (count, vision.num_channels, vision.image_size, vision.image_size)
        return torch.randn(
            shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        ).to(self._device, self._dtype)

    def open(self, states: torch.Tensor, token: int) -> FirstStepKV:
        """Run the model over image and one token; what the image has become does not depend on the token."""
        cache = DynamicCache()
        ids = torch.full((states.shape[0], 1), token, device=self._device)
        self._module(input_ids=ids, pixel_values=states, past_key_values=cache, use_cache=True, return_dict=True)
        pairs = _pairs(cache)
        own = [(key[:, :, -1:], value[:, :, -1:]) for key, value in pairs]
        return FirstStepKV(own, [(key[:, :, :-1], value[:, :, :-1]) for key, value in pairs])

    def whole(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Run the model over image and text without a cache."""
        output = self._module(input_ids=ids, pixel_values=states, use_cache=False, return_dict=True)
        logits: torch.Tensor = output.logits[:, -ids.shape[1] :]
        return logits

    def arguments(self, ids: torch.Tensor, start: int) -> dict[str, Any]:
        """Text counts its positions from 0, whatever the image takes."""
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        return {"input_ids": ids, "position_ids": positions.expand(ids.shape)}


def _pairs(cache: Any) -> KeysValues:
    return [(layer.keys, layer.values) for layer in cache.layers]


def adapter_of(module: Any) -> EncoderAdapter:
    """Return how this model reads; `families.source_obstacle` has found that it does."""
    return PrefixAdapter(module) if module.config.model_type == "git" else CrossAttentionAdapter(module)


def batches(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Yield the sources in groups whose inputs have the same shapes, each source once."""
    groups: dict[Any, list[Source]] = {}
    for source in {id(source): source for source in sources}.values():
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(source.inputs.items()))
        groups.setdefault(shapes, []).append(source)
    for group in groups.values():
        for start in range(0, len(group), _MOST_TOGETHER):
            yield group[start : start + _MOST_TOGETHER]


def stacked(group: Sequence[Source], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the inputs of one group in one batch, without a mask that hides nothing."""
    inputs = {}
    for name in group[0].inputs:
        tensor = torch.cat([source.inputs[name] for source in group]).to(device)
        inputs[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    mask = inputs.get("attention_mask")
    if mask is not None and bool(mask.bool().all()):
        del inputs["attention_mask"]
    return inputs


def visible(pairs: KeysValues, row: int, mask: torch.Tensor | None) -> KeysValues:
    """Return one source's keys and values, positions behind its mask left out.

    Raises:
        ModelError: the mask does not speak of these positions.
    """
    if mask is None:
        return [(key[row : row + 1], value[row : row + 1]) for key, value in pairs]
    kept = mask[row].bool()
    if len(kept) != pairs[0][0].shape[2]:
        raise ModelError("the source has an `attention_mask` that its encoder does not keep; leave out what it hides")
    return [
        (key[row : row + 1, :, kept.to(key.device)], value[row : row + 1, :, kept.to(key.device)])
        for key, value in pairs
    ]
