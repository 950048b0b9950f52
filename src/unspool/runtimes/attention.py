"""Attention over slots: how one flat row of tokens reads and writes the keys and values of many sequences.

Owns the function registered with transformers' AttentionInterface and the arithmetic. Does not know what a sequence
is, or which slot belongs to whom: a `Plan` (passes.py) names the slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from unspool.errors import ModelError

ATTENTION_NAME = "unspool_slots"


class Attends(Protocol):
    """What stands behind the registered function during one forward."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Return [tokens, heads, value width]; query, key, value: [1, heads, tokens, width], of one layer."""
        ...


class Terms:
    """How one layer attends: the arguments that transformers' attention functions share.

    scaling: factor on the scores. window: most keys a query sees, its own included; None for all. softcap: scores are
    softcap * tanh(scores / softcap); None for as they are. sinks: [heads], a score without a value; None for none.
    """

    __slots__ = ("scaling", "sinks", "softcap", "window")

    def __init__(
        self, scaling: float | None, window: int | None, softcap: float | None, sinks: torch.Tensor | None
    ) -> None:
        self.scaling, self.window, self.softcap, self.sinks = scaling, window, softcap, sinks


_ACTIVE: ContextVar[Attends | None] = ContextVar("unspool_attention", default=None)


@contextmanager
def attending(target: Attends) -> Iterator[None]:
    """Let models set to `ATTENTION_NAME` attend through `target`, in this thread and while the context lasts."""
    token = _ACTIVE.set(target)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every attention layer. --> [1, tokens, heads, width]

    Raises:
        ModelError: called outside of a forward of ours, or with a mask or a bias that it would have to ignore.
    """
    target = _ACTIVE.get()
    if target is None:
        raise ModelError("this copy of the model belongs to unspool and runs only inside it: call your own model")
    if attention_mask is not None or position_bias is not None:
        given = "a mask of its own" if attention_mask is not None else "a position bias"
        raise ModelError(f"{type(module).__name__} attends with {given}, which the slot cache does not support")
    terms = Terms(scaling, sliding_window, softcap, s_aux)
    return target.attend(query, key, value, terms)[None], None


AttentionInterface.register(ATTENTION_NAME, slot_attention)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    terms: Terms,
    *,
    allowed: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention with what torch's own lacks: softcap and sinks.

    Args:
        query: [batch, heads, queries, width]
        key, value: [batch, kv heads, keys, width]; heads is a multiple of kv heads.
        allowed: bool, broadcastable to [batch, 1, queries, keys]; None for all.
        is_causal: whether query i sees keys 0 to i alone; not together with `allowed`.

    Returns:
        [batch, heads, queries, value width]
    """
    if terms.softcap is None and terms.sinks is None:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=is_causal, scale=terms.scaling, enable_gqa=grouped
        )
    if is_causal:
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return attend_plainly(query, key, value, terms, allowed)


def attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: Terms, allowed: torch.Tensor | None
) -> torch.Tensor:
    """Attention written out; see `attend`. A key that is not allowed may be anything, its value must be finite."""
    batch, num_heads, num_queries, width = query.shape
    num_groups = key.shape[1]
    scaling = width**-0.5 if terms.scaling is None else terms.scaling
    # The heads of one group stand below one another, so that its keys are read once.
    grouped = query.reshape(batch, num_groups, -1, width)
    scores = (grouped @ key.transpose(2, 3)).view(batch, num_heads, num_queries, -1).float() * scaling
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if terms.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = terms.sinks.float().view(1, -1, 1, 1).expand(batch, -1, num_queries, 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    weights = weights.to(value.dtype).reshape(batch, num_groups, -1, key.shape[2])
    return (weights @ value).view(batch, num_heads, num_queries, -1)


@cache
def cache_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """Return the type to keep keys and values in: the model's, or float32 on a CPU where attention is faster so."""
    if device_type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return torch.float32 if _attention_seconds(torch.float32) < _attention_seconds(dtype) else dtype


def _attention_seconds(dtype: torch.dtype) -> float:
    """Return the shortest time that one query over 512 keys took, of several."""
    query, key = torch.zeros(1, 12, 1, 64, dtype=dtype), torch.zeros(1, 12, 512, 64, dtype=dtype)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        F.scaled_dot_product_attention(query, key, key)
        times.append(time.perf_counter() - started)
    return min(times)
