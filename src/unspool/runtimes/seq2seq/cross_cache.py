"""The decoder's cross-attention cache during one pass: the keys and values of encoded sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

from unspool.runtimes.seq2seq.encoder_cache import EncodedSource, KeysValues
from unspool.runtimes.seq2seq.self_cache import SelfCache


class _Layer(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor


class CrossCache(Cache):
    """The `Cache` that transformers sees for the sources. All keys and values exist before the pass."""

    def __init__(self, layers: KeysValues) -> None:
        super().__init__(layers=[])
        found: Any = [_Layer(*layer) for layer in layers]
        self.layers = found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions of the sources. Never 0, so that the model does not compute them again."""
        layer: Any = self.layers[layer_idx]
        return int(layer.keys.shape[2])


class CrossBatchCache:
    """Concatenates the keys and values of sources of equal length, and keeps the result while the rows stay the same.

    A model that computes attention itself needs one tensor per layer for all rows.
    """

    def __init__(self) -> None:
        self._rows: tuple[int, ...] = ()
        self._layers: KeysValues = []

    def layers_of(self, encoded: Sequence[EncodedSource]) -> KeysValues:
        """Return keys and values per layer, [rows, heads, length, width]; views if all rows read one source."""
        first = encoded[0]
        if all(each is first for each in encoded):
            return [
                (key.expand(len(encoded), -1, -1, -1), value.expand(len(encoded), -1, -1, -1))
                for key, value in zip(first.keys, first.values, strict=True)
            ]
        rows = tuple(each.number for each in encoded)
        if rows != self._rows:
            self._rows = rows
            self._layers = [
                (torch.cat([each.keys[n] for each in encoded]), torch.cat([each.values[n] for each in encoded]))
                for n in range(len(first.keys))
            ]
        return self._layers

    def clear(self) -> None:
        """Free the memory."""
        self._rows, self._layers = (), []


def joint_cache(own: SelfCache, layers: KeysValues) -> EncoderDecoderCache:
    """Return the cache of an encoder-decoder. layers: keys and values of the sources."""
    return EncoderDecoderCache(own, CrossCache(layers))
