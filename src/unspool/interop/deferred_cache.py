"""The cache in a result: computed when it is first used, because most callers never read it.

Owns: when it is computed, and for which rows. Does not know: how tokens were decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from unspool.config import GenerationConfig
from unspool.runtimes.generic.prepared_batch import PreparedBatch, PreparedBatchRuntime
from unspool.runtimes.model_info import forward_parameters


class _Deferred:
    """A cache of transformers that is computed at the first access to an attribute, and then has its plain class."""

    def __init__(self, compute: Callable[[], Cache]) -> None:
        self._compute = compute

    def __getattr__(self, name: str) -> Any:
        if name == "_compute" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        self._become()
        return getattr(self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._become()
        return self.__reduce_ex__(protocol)

    def _become(self) -> None:
        """Compute the cache, and turn this object into it."""
        cache = self._compute()
        self.__dict__ = cache.__dict__
        self.__class__ = type(cache)  # type: ignore[assignment]


class _DeferredCache(_Deferred, DynamicCache):
    """Of a decoder."""


class _DeferredStaticCache(_Deferred, StaticCache):
    """Of a decoder, with a fixed size."""


class _DeferredEncoderDecoderCache(_Deferred, EncoderDecoderCache):
    """Of an encoder-decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSource:
    """The source of a call's cache: its prompts.

    model: the caller's. prepare: returns the batch of the call with a number of rows per prompt. config: resolved.
    num_prompts: of the call. rows: the only number of rows per prompt that can be prepared; None for any.
    """

    model: Any
    prepare: Callable[[int], PreparedBatch]
    config: GenerationConfig
    num_prompts: int
    rows: int | None = None

    def cache(self, written: torch.Tensor) -> Any:
        """Return the cache of the prompts and their outputs, which the model computes when it is first used.

        A cache of the model's own class (MiniMax, RWKV) is computed at once.

        Args:
            written: [rows, tokens], the output tokens that it holds; the rows of a prompt adjacent.

        Returns:
            None for a model with a memory in place of a cache, for `use_cache=False`, and for rows that cannot be
            prepared.
        """
        if self.rows is not None and len(written) != self.rows * self.num_prompts:
            return None
        if self.config.extras.get("use_cache") is False:
            return None
        if not self.model._supports_default_dynamic_cache():
            # XLNet is read without its memory, see docs/compatibility.md.
            return None if "mems" in forward_parameters(self.model) else self._computed(written)
        return self._kind(lambda: self._computed(written))

    @property
    def _kind(self) -> Callable[[Callable[[], Cache]], Cache]:
        if self.model.config.is_encoder_decoder:
            return _DeferredEncoderDecoderCache
        is_static = self.config.extras.get("cache_implementation") in ALL_STATIC_CACHE_IMPLEMENTATIONS
        return _DeferredStaticCache if is_static else _DeferredCache

    def _computed(self, written: torch.Tensor) -> Any:
        batch = self.prepare(len(written) // self.num_prompts)
        runtime = PreparedBatchRuntime(self.model, batch, prompts=[()] * self.num_prompts, pad_token_id=None)
        runtime.read(written)
        return runtime.cache
