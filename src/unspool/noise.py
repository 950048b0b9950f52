"""Randomness as a pure function of (seed, output index, position, lane, token).

No generator object and no hidden state: the number belongs to its name, so a draw does not depend on what else is in
the batch, on the order of work, or on how many draws went before. Imports nothing of ours.

    key(seed, output, position, lane)            64 bits, in Python integers: one mix a field
    bits(key, token) = mix(key + token * ODD)    64 bits, in tensors, alike on every device
    u                = 63 of the bits / 2**63    in (0, 1)
    gumbel           = -log(-log(1 - u))         exact in the upper tail, since u keeps its precision near 0

`mix` is the finaliser of MurmurHash3 (Appleby 2011) with the constants of variant 13 (Stafford 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class NoiseKey(NamedTuple):
    """Names a stream of noise over the vocabulary.

    lane: 0 for plain sampling, the beam rank in beams, the processor's name where a processor draws.
    """

    seed: int
    output: int
    position: int
    lane: int | str = 0


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _lane_number(lane: int | str) -> int:
    if isinstance(lane, int):
        return lane
    # The highest bit keeps names apart from the small numbers of ranks.
    return int.from_bytes(blake2b(lane.encode(), digest_size=8).digest(), "big") | (1 << 63)


def key_bits(key: NoiseKey) -> int:
    """Return the 64 bits that name the stream. Seeds may be any integer; they count modulo 2**64."""
    value = 0
    for part in (key.seed, key.output, key.position, _lane_number(key.lane)):
        value = _mix_int((value + _ODD + part) & _MASK)
    return value


def _shift(value: torch.Tensor, count: int) -> torch.Tensor:
    return (value >> count) & ((1 << (64 - count)) - 1)


def _uniform(keys: Sequence[NoiseKey], tokens: torch.Tensor) -> torch.Tensor:
    """Return numbers in (0, 1). tokens: [tokens] or [rows, tokens] int64 --> [rows, tokens] float32"""
    named = torch.tensor([_signed(key_bits(k)) for k in keys], device=tokens.device)
    value = named[:, None] + tokens * _signed(_ODD)  # --> [rows, tokens]
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    value = (value ^ _shift(value, 31)) & ((1 << 63) - 1)
    # float32 keeps 24 bits of whatever size the number has, so small u stay exact; 0 and 1 themselves are kept out.
    return (value.to(torch.float32) * 2.0**-63).clamp(2.0**-63, 1 - 2.0**-24)


def uniform(keys: Sequence[NoiseKey]) -> torch.Tensor:
    """Return one number in (0, 1) for each key. --> [rows] float32, on the CPU"""
    return _uniform(keys, torch.zeros(1, dtype=torch.int64))[:, 0]


def gumbel(keys: Sequence[NoiseKey], tokens: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise for the named tokens.

    Args:
        keys: one for each row.
        tokens: [tokens], the same for every row, or [rows, tokens]; int64.

    Returns:
        [rows, tokens] float32 on the device of `tokens`.
    """
    return -torch.log(-torch.log1p(-_uniform(keys, tokens)))
