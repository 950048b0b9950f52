"""Limits on live sequences and cached tokens: the memory budget of the KV cache.

A hard limit comes from the user: a request that needs more is refused. A soft limit is the default: requests wait for
each other, and a request that needs more runs alone.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch

from unspool.errors import CapacityError
from unspool.machine.memory import free_memory
from unspool.tuning import CACHE_MEMORY_SHARE, SOFT_MAX_SEQUENCES

Limit: TypeAlias = int | Literal["auto"] | None
"""A number is a hard limit, "auto" the soft limit, None no limit."""

_ROOM_PER_TOKEN: Final = 2
"""Slot tokens per cached token, at most: a sequence fills at least half of its slot."""


class Limits(NamedTuple):
    """The limits of one runtime, with the names of ModelInfo; None for no limit."""

    max_sequences: int | None = None
    max_tokens: int | None = None
    soft_max_sequences: int | None = None
    soft_max_tokens: int | None = None


NO_LIMITS: Final = Limits()


def hard(limit: Limit) -> int | None:
    """Return the hard limit; None if the limit is soft or absent."""
    return None if limit == "auto" else limit


def check_room(*, num_sequences: int, num_tokens: int, max_sequences: int | None, max_tokens: int | None) -> None:
    """Check that a cache can hold this many live sequences and tokens; a limit of None allows any number.

    Raises:
        CapacityError: if it cannot.
    """
    if max_tokens is not None and num_tokens > max_tokens:
        raise CapacityError(f"the cache holds at most {max_tokens} tokens; {num_tokens} were needed")
    if max_sequences is not None and num_sequences > max_sequences:
        raise CapacityError(f"the cache holds at most {max_sequences} sequences; {num_sequences} were needed")


def limits_of(sequences: Limit, tokens: Limit, *, bytes_per_token: int, device: torch.device) -> Limits:
    """Return the limits of a runtime. Load the model first: "auto" depends on the free memory.

    Args:
        sequences: limit on live sequences.
        tokens: limit on cached tokens over all live sequences.
        bytes_per_token: of the KV cache, over all layers; 0 without a KV cache.
        device: of the KV cache.
    """
    room = free_memory(device) if tokens == "auto" and bytes_per_token else None
    soft = None if room is None else max(1, int(room * CACHE_MEMORY_SHARE) // (_ROOM_PER_TOKEN * bytes_per_token))
    return Limits(hard(sequences), hard(tokens), SOFT_MAX_SEQUENCES if sequences == "auto" else None, soft)


def estimated_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Return the K/V bytes per token with multi-head attention in a cache of transformers; 0 if unknown."""
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    return 2 * layers * width * dtype.itemsize if layers and width else 0
