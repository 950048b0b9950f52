"""Counter-based random numbers: noise as a pure function of (seed, prompt, output index, position, lane, token).

The noise is stateless. A draw does not depend on the rest of the batch, on the order of work, or on the number of
earlier draws. Different prompts draw independently under one seed. Does not import other modules of unspool.

    prompt_key(tokens)                           64 bits: BLAKE2b of the token ids, computed once per request
    key(seed, prompt, output, position, lane)    64 bits, in Python integers: one mix per field
    bits(key, token) = mix(key + token * ODD)    64 bits, in tensors, alike on every device
    u                = 63 of the bits / 2**63    in (0, 1)
    gumbel           = -log(-log(1 - u))         exact in the upper tail, since u keeps its precision near 0

`mix` is the finalizer of MurmurHash3 (Appleby 2011) with the constants of variant 13 (Stafford 2011).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class NoiseKey(NamedTuple):
    """Identifies a stream of noise over the vocabulary.

    prompt: the `prompt_key` of the prompt.
    lane: 0 for plain sampling, the beam rank in beam searches, the processor's name if a processor draws.
    """

    seed: int
    prompt: int
    output: int
    position: int
    lane: int | str = 0


def prompt_key(tokens: Sequence[int], source: Iterable[bytes] = ()) -> int:
    """Return a 64-bit key of a prompt: BLAKE2b of its token ids, equal on every system.

    Args:
        tokens: the token ids that count; an empty sequence gives the key of "any prompt".
        source: the encoder's input as bytes, in parts; empty for a model without an encoder.
    """
    digest = blake2b(token_bytes(tokens), digest_size=8)
    for part in source:
        # The length before each part makes the key depend on the border between parts.
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Return token ids as bytes for `prompt_key`, eight per id."""
    return np.asarray(tokens, dtype="<i8").tobytes()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _lane_number(lane: int | str) -> int:
    if isinstance(lane, int):
        return lane
    # The highest bit separates names from the small numbers of ranks.
    return int.from_bytes(blake2b(lane.encode(), digest_size=8).digest(), "big") | (1 << 63)


def key_bits(key: NoiseKey) -> int:
    """Return the 64-bit key of the stream. A seed can be any integer; it counts modulo 2**64."""
    value = 0
    for part in (key.seed, key.prompt, key.output, key.position, _lane_number(key.lane)):
        value = _mix_int((value + _ODD + part) & _MASK)
    return value


def streams(keys: Sequence[NoiseKey], device: torch.device | None = None) -> torch.Tensor:
    """Return the 64-bit keys of the streams as a tensor. --> [rows] int64"""
    return torch.tensor([_signed(key_bits(key)) for key in keys], dtype=torch.int64, device="cpu").to(
        device, non_blocking=True
    )


def _fold(value: torch.Tensor, shift: int, work: torch.Tensor) -> torch.Tensor:
    """Mix the upper bits of each number into its lower bits, in place."""
    torch.bitwise_right_shift(value, shift, out=work).bitwise_and_((1 << (64 - shift)) - 1)
    return value.bitwise_xor_(work)


def _bits(named: torch.Tensor, multiples: torch.Tensor, value: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    """Return 63 bits per token. multiples: token * _ODD. value, work: buffers, overwritten. --> [rows, tokens]"""
    torch.add(multiples, named[:, None], out=value)
    _fold(value, 30, work).mul_(_signed(_FIRST))
    _fold(value, 27, work).mul_(_signed(_SECOND))
    return _fold(value, 31, work).bitwise_and_((1 << 63) - 1)


def _minus(bits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Convert the bits to u in (0, 1), and return -u in `out`."""
    # float32 has 24 significant bits at every magnitude, so small u are exact; the clamp excludes 0 and 1.
    return out.copy_(bits).mul_(-(2.0**-63)).clamp_(-(1 - 2.0**-24), -(2.0**-63))


def uniform(keys: Sequence[NoiseKey]) -> torch.Tensor:
    """Return one uniform number in (0, 1) per key. --> [rows] float32, on the CPU"""
    value, work = torch.empty(2, len(keys), 1, dtype=torch.int64, device="cpu")
    bits = _bits(streams(keys), torch.zeros(1, dtype=torch.int64, device="cpu"), value, work)
    return -_minus(bits, torch.empty(bits.shape, dtype=torch.float32, device="cpu"))[:, 0]


def gumbel(keys: Sequence[NoiseKey] | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise for the given tokens.

    Args:
        keys: one per row, or their `streams`.
        tokens: [tokens], the same for every row, or [rows, tokens]; int64.

    Returns:
        [rows, tokens] float32 on the device of `tokens`.
    """
    named = keys if isinstance(keys, torch.Tensor) else streams(keys, tokens.device)
    shape = (len(named), tokens.shape[-1])
    value, work = torch.empty(2, *shape, dtype=torch.int64, device=tokens.device)
    out = torch.empty(shape, dtype=torch.float32, device=tokens.device)
    return _minus(_bits(named, tokens * _signed(_ODD), value, work), out).log1p_().neg_().log_().neg_()


def gumbel_parts(named: torch.Tensor, count: int, step: int) -> Iterator[torch.Tensor]:
    """Yield the Gumbel noise of the first `count` tokens, `step` rows at a time; the next part overwrites each part.

    named: [rows], the streams. Yields [up to step rows, count] float32, in order of rows.
    """
    step = min(step, len(named))
    multiples = _multiples(count, named.device)
    value, work = torch.empty(2, step, count, dtype=torch.int64, device=named.device)
    out = torch.empty(step, count, dtype=torch.float32, device=named.device)
    for start in range(0, len(named), step):
        part = named[start : start + step]
        rows = len(part)
        bits = _bits(part, multiples, value[:rows], work[:rows])
        yield _minus(bits, out[:rows]).log1p_().neg_().log_().neg_()


@lru_cache(maxsize=4)
def _multiples(count: int, device: torch.device) -> torch.Tensor:
    """Return token * _ODD for the first `count` tokens. The tensor is cached: do not modify it. --> [count] int64"""
    with torch.inference_mode(False):
        return torch.arange(count, device=device) * _signed(_ODD)
