"""How much running requests can hold together: limits of the user's, and the soft ones that hold without these.

A hard limit is the user's own: a request that needs more is refused. A soft limit is the default: requests wait for
each other, and one that needs more runs alone.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch

from unspool.errors import CapacityError
from unspool.machine.memory import free_memory

Limit: TypeAlias = int | Literal["auto"] | None
"""A number is a hard limit, "auto" the soft one, None no limit."""

MAX_SEQUENCES: Final = 256
"""The soft limit on live sequences. A CPU is busy with far fewer rows, and the rest of a large batch loses nothing."""

_SHARE: Final = 0.5
"""Of the free memory, for keys and values."""

_ROOM_PER_TOKEN: Final = 2
"""A sequence fills at least half of its slot."""


class Limits(NamedTuple):
    """The limits of one runtime, as ModelInfo has them; None for no limit."""

    max_sequences: int | None = None
    max_tokens: int | None = None
    soft_max_sequences: int | None = None
    soft_max_tokens: int | None = None


NO_LIMITS: Final = Limits()


def hard(limit: Limit) -> int | None:
    """Return the limit beyond which a request is refused, if it is one."""
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
    """Return the limits of a runtime whose model is loaded.

    Args:
        sequences: on live sequences. tokens: on tokens cached over all of them.
        bytes_per_token: of keys and values; 0 if none are kept.
        device: of these.
    """
    room = free_memory(device) if tokens == "auto" and bytes_per_token else None
    soft = None if room is None else max(1, int(room * _SHARE) // (_ROOM_PER_TOKEN * bytes_per_token))
    return Limits(hard(sequences), hard(tokens), MAX_SEQUENCES if sequences == "auto" else None, soft)


def estimated_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of a token's keys and values in a cache of transformers' own, if all heads have their own."""
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    return 2 * layers * width * dtype.itemsize if layers and width else 0
