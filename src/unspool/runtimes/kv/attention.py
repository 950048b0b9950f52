"""Attention over the KV cache: the one function that we register with transformers' AttentionInterface, and the math.

Knows neither sequences nor slots: the active target (`Attends`) finds the keys and values of each query.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from unspool.errors import ModelError
from unspool.tuning import DTYPE_TRIAL_BYTES, DTYPE_TRIAL_KEYS, DTYPE_TRIAL_LAYERS, FEW_QUERIES, WIDER_CACHE_GAIN

ATTENTION_NAME: Final = "unspool_slots"
"""The attention implementation of every model copy that attends over our KV cache."""


class AttentionParams:
    """How one layer attends: the optional arguments of transformers' attention functions.

    scaling: factor on the scores; None for 1 / sqrt(width). window: most keys that a query sees, its own included; None
    for all. softcap: scores become softcap * tanh(scores / softcap); None for no cap. sinks: [heads], a score without a
    value; None for none. bias: [1, heads, queries, keys], added to the scores; None for none.
    """

    __slots__ = ("bias", "scaling", "sinks", "softcap", "window")

    def __init__(
        self,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ) -> None:
        self.scaling, self.window, self.softcap, self.sinks, self.bias = scaling, window, softcap, sinks, bias

    @property
    def needs_manual(self) -> bool:
        """Whether PyTorch's own attention lacks one of these, so that `manual_attention` must run."""
        return self.softcap is not None or self.sinks is not None


_OPTIONAL: Final = {
    "window": "a sliding window",
    "softcap": "a softcap",
    "sinks": "attention sinks",
    "bias": "a position bias",
}
"""Fields of AttentionParams that a target can lack, and their names in messages."""


class Attends(Protocol):
    """Computes attention for the registered function during one forward pass."""

    supported_params: ClassVar[frozenset[str]]
    """Fields of AttentionParams that it applies, besides scaling."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend in one layer.

        Args:
            query: [batch, heads, queries, width].
            key, value: [batch, kv heads, keys, width], as the model passes them. They can be stand-ins for cached ones.

        Returns:
            [batch * queries, heads, value width], all queries of the first batch entry first.
        """
        ...


_ACTIVE: ContextVar[Attends | None] = ContextVar("unspool_attention", default=None)


@contextmanager
def attending(target: Attends) -> Iterator[None]:
    """Send the attention of models set to `ATTENTION_NAME` to `target`, in this thread, until the context ends."""
    token = _ACTIVE.set(target)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def cached_attention(
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
    """Attend through the active target; transformers calls this in every attention layer.

    Returns:
        [batch, queries, heads, value width], and None for the attention weights.

    Raises:
        ModelError: if no target is active, or if the layer passes a mask or a parameter that the target ignores.
    """
    target = _ACTIVE.get()
    if target is None:
        raise ModelError("this copy of the model belongs to unspool and runs only inside it: call your own model")
    params = AttentionParams(scaling, sliding_window, softcap, s_aux, position_bias)
    if attention_mask is not None:
        raise _unsupported(module, "a mask of its own")
    if sliding_window is not None or softcap is not None or s_aux is not None or position_bias is not None:
        for name, words in _OPTIONAL.items():
            if getattr(params, name) is not None and name not in target.supported_params:
                raise _unsupported(module, words)
    out = target.attend(query, key, value, params)
    return out.view(query.shape[0], -1, *out.shape[1:]), None


def _unsupported(module: torch.nn.Module, words: str) -> ModelError:
    return ModelError(f"{type(module).__name__} attends with {words}, which this cache does not support")


AttentionInterface.register(ATTENTION_NAME, cached_attention)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    params: AttentionParams,
    *,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention with softcap and sinks, which torch's function lacks.

    Args:
        query: [batch, heads, queries, width]
        key, value: [batch, kv heads, keys, width]; heads is a multiple of kv heads.
        params: of the layer; `window` is not read here.
        mask: added to the scores, [queries, keys] or, for one query, [batch, 1, 1, keys]; None for no mask.
        is_causal: True if query i sees only keys [0, i + 1). Not with `mask`, and not if `params.needs_manual`.

    Returns:
        [batch, heads, queries, value width]
    """
    if params.needs_manual:
        assert not is_causal, "manual attention takes a mask"
        return manual_attention(query, key, value, params, mask)
    batch, num_heads, num_queries, width = query.shape
    num_groups = key.shape[1]
    if num_heads == num_groups or num_queries > FEW_QUERIES or is_causal:
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=is_causal, scale=params.scaling, enable_gqa=num_heads != num_groups
        )
    # Grouped-query attention: the heads of a group become queries of one head, so that its keys are read once.
    folded = query.reshape(batch, num_groups, -1, width)
    if mask is not None and num_queries > 1:
        mask = mask.repeat(num_heads // num_groups, 1)
    out = F.scaled_dot_product_attention(folded, key, value, mask, scale=params.scaling)
    return out.reshape(batch, num_heads, num_queries, -1)


def manual_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention in separate ops; see `attend`. All keys and values must be finite, even those that a mask hides."""
    batch, num_heads, num_queries, width = query.shape
    num_groups = key.shape[1]
    scaling = width**-0.5 if params.scaling is None else params.scaling
    grouped = query.reshape(batch, num_groups, -1, width)
    # In place, because the scores are the largest tensor here.
    scores = (grouped @ key.transpose(2, 3)).view(batch, num_heads, num_queries, -1).float()
    if params.softcap is None:
        scores.mul_(scaling)
    else:
        scores.mul_(scaling / params.softcap).tanh_().mul_(params.softcap)
    if mask is not None:
        scores.add_(mask)
    if params.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = params.sinks.float().view(1, -1, 1, 1).expand(batch, -1, num_queries, 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    weights = weights.to(value.dtype).reshape(batch, num_groups, -1, key.shape[2])
    return (weights @ value).view(batch, num_heads, num_queries, -1)


class Heads(NamedTuple):
    """The heads of one layer: `groups` key heads of `width` numbers; `group_size` query heads read each of them."""

    groups: int
    group_size: int
    width: int


TYPICAL_HEADS = Heads(12, 1, 64)


@cache
def cache_dtype(
    dtype: torch.dtype, device_type: str, heads: Heads = TYPICAL_HEADS, *, written_out: bool = False
) -> torch.dtype:
    """Return the dtype of the KV cache: that of the model, or float32 if attention is faster so on this CPU.

    Faster means by at least 20 %, so that timing noise does not change memory and rounding from run to run.

    Args:
        dtype: of the model.
        device_type: "cpu", "cuda", ...; only a CPU is timed.
        heads: of the layer.
        written_out: True if the layer uses `manual_attention`. It needs float32, because half precision would round
            the scores.
    """
    if device_type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    if written_out:
        return torch.float32
    own, wide = _attention_seconds((dtype, torch.float32), heads)
    return torch.float32 if own > WIDER_CACHE_GAIN * wide else dtype


def _attention_seconds(dtypes: Sequence[torch.dtype], heads: Heads) -> list[float]:
    """Return the median seconds of one query per dtype. Keys are read from memory, not from the CPU cache."""
    params = AttentionParams(None, None, None, None)
    layers = max(1, min(DTYPE_TRIAL_LAYERS, DTYPE_TRIAL_BYTES // (8 * DTYPE_TRIAL_KEYS * heads.groups * heads.width)))
    query = torch.ones(1, heads.groups * heads.group_size, 1, heads.width, dtype=torch.float32, device="cpu")
    queries = [query.to(dtype) for dtype in dtypes]
    # Ones, so that every page was written and has memory of its own.
    shape = (layers, 1, heads.groups, DTYPE_TRIAL_KEYS, heads.width)
    keys = [torch.ones(shape, dtype=dtype, device="cpu") for dtype in dtypes]
    values = [each.clone() for each in keys]
    times: list[list[float]] = [[] for _ in dtypes]
    with torch.inference_mode():
        for turn in range(2 * DTYPE_TRIAL_LAYERS):
            layer = turn % layers
            for number in range(len(dtypes)):
                started = time.perf_counter()
                attend(queries[number], keys[number][layer], values[number][layer], params)
                times[number].append(time.perf_counter() - started)
    return [statistics.median(each) for each in times]
