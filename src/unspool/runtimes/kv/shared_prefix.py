"""Leading tokens that several sequences of a pass have in common: the keys and values of these are read once for all.

Beams of one prompt, samples of one prompt and chats behind one system prompt hold the same keys and values in many
slots. Reading them is what attention of single queries costs. Owns which queries share how much; reads no tensors.
(Shared-prefix attention in two parts: Juravsky et al. 2024, "Hydragen", section 3.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

LEAST_SHARED = 32
"""Fewer tokens in common are not looked for."""

SPARED_BYTES = 3 << 20
"""What must be spared in a layer to pay for the second part.

Measured with 12 heads, and with 4 for 32, of width 64: both ways are equally fast where 2 to 3 MiB are spared, and the
second is twice as fast from some 6 MiB on.
"""


class Sharing(Protocol):
    """A query of a pass. shared: how many leading keys and values it has in common with the one before it."""

    @property
    def shared(self) -> int: ...


S = TypeVar("S", bound=Sharing)


class SharedPrefix(NamedTuple):
    """Consecutive queries [first, stop), of those given, and how many leading tokens all of them have in common."""

    first: int
    stop: int
    length: int

    @property
    def spared(self) -> int:
        """Keys that need not be read."""
        return (self.stop - self.first - 1) * self.length


def shared_prefixes(queries: Sequence[S], bytes_per_token: int) -> list[SharedPrefix]:
    """Cut queries into consecutive stems so that much is spared; those that share too little have a stem of length 0.

    bytes_per_token: of one layer's keys and values.
    """
    found: list[SharedPrefix] = []
    first = 0
    for index in range(1, len(queries) + 1):
        if index == len(queries) or queries[index].shared < LEAST_SHARED:
            found += _best([query.shared for query in queries[first:index]], first)
            first = index
    prefixes: list[SharedPrefix] = []
    for shared_prefix in found:
        if shared_prefix.spared * bytes_per_token >= SPARED_BYTES:
            prefixes.append(shared_prefix)
        elif prefixes and not prefixes[-1].length:
            prefixes[-1] = prefixes[-1]._replace(stop=shared_prefix.stop)
        else:
            prefixes.append(shared_prefix._replace(length=0))
    return prefixes


def _best(shared: Sequence[int], offset: int) -> list[SharedPrefix]:
    """Return the stems of queries that all share something: one, or more where cutting at the least spares more."""
    stop = offset + len(shared)
    if len(shared) == 1:
        return [SharedPrefix(offset, stop, 0)]
    length, cut = min((length, place) for place, length in enumerate(shared) if place)
    whole = SharedPrefix(offset, stop, length)
    if all(each == length for each in shared[1:]):
        return [whole]
    parts = _best(shared[:cut], offset) + _best(shared[cut:], offset + cut)
    return parts if sum(part.spared for part in parts) > whole.spared else [whole]
