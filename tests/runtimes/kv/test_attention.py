"""The arithmetic of attention against a plain sum over keys, and how often it reads them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.runtimes.counting import NewTensors
from tests.runtimes.kv.test_attention_plan import needs_kernels
from tests.tiny_models import tiny_model
from unspool.errors import ModelError
from unspool.kernels.library import VARIABLE
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv import attention
from unspool.runtimes.kv.attention import AttentionParams, Heads, attend, attending, cache_dtype, manual_attention
from unspool.runtimes.kv.cache import SlotCache
from unspool.runtimes.seq2seq.attention import EqualLengthAttention, FirstTokenAttention
from unspool.types import Feed

PLAIN = AttentionParams(None, None, None, None)


def summed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """Attention in float64, head by head. allowed: bool [batch, queries, keys]. --> [batch, heads, queries, width]"""
    heads = query.shape[1]
    out = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64)
    for row, head in ((row, head) for row in range(len(query)) for head in range(heads)):
        group = head * key.shape[1] // heads
        scale = query.shape[-1] ** -0.5 if params.scaling is None else params.scaling
        scores = query[row, head].double() @ key[row, group].double().T * scale
        if params.softcap is not None:
            scores = (scores / params.softcap).tanh() * params.softcap
        weights = scores.exp() * allowed[row]
        sink = 0.0 if params.sinks is None else float(params.sinks[head].double().exp())
        out[row, head] = weights / (weights.sum(-1, keepdim=True) + sink) @ value[row, group].double()
    return out


def drawn(heads: int, groups: int, queries: int, keys: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(heads * 1000 + queries)
    shapes = ((batch, heads, queries, 8), (batch, groups, keys, 8), (batch, groups, keys, 6))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


TERMS = {
    "plain": PLAIN,
    "scaled": AttentionParams(0.7, None, None, None),
    "softcap": AttentionParams(0.7, None, 3.0, None),
    "sinks": AttentionParams(None, None, None, torch.linspace(-1, 2, 6)),
    "softcap and sinks": AttentionParams(None, None, 3.0, torch.linspace(-1, 2, 6)),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("groups", [6, 3, 2, 1])
@pytest.mark.parametrize("queries", [1, 2, 32, 33])
def test_it_is_a_weighted_sum_of_values(name: str, groups: int, queries: int) -> None:
    query, key, value = drawn(6, groups, queries, 40)
    everything = torch.ones(1, queries, 40, dtype=torch.bool)
    expected = summed(query, key, value, everything, TERMS[name])
    torch.testing.assert_close(attend(query, key, value, TERMS[name]).double(), expected, atol=1e-5, rtol=0)
    lower = torch.arange(40) <= torch.arange(40 - queries, 40)[:, None]
    mask = torch.zeros(queries, 40).masked_fill(~lower, -math.inf)
    expected = summed(query, key, value, lower[None], TERMS[name])
    torch.testing.assert_close(attend(query, key, value, TERMS[name], mask=mask).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("groups", [6, 2])
def test_single_queries_of_several_rows_see_each_its_own_keys(name: str, groups: int) -> None:
    query, key, value = drawn(6, groups, 1, 40, batch=3)
    allowed = (torch.arange(40) < torch.tensor([40, 7, 23])[:, None])[:, None]
    mask = torch.zeros(3, 1, 40).masked_fill(~allowed, -math.inf)[:, None]
    found = attend(query, key, value, TERMS[name], mask=mask)
    torch.testing.assert_close(found.double(), summed(query, key, value, allowed, TERMS[name]), atol=1e-5, rtol=0)
    found = manual_attention(query, key, value, TERMS[name], mask)
    torch.testing.assert_close(found.double(), summed(query, key, value, allowed, TERMS[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [6, 2])
def test_causal_queries_see_what_is_before_them(groups: int) -> None:
    query, key, value = drawn(6, groups, 20, 20)
    lower = torch.ones(1, 20, 20, dtype=torch.bool).tril()
    found = attend(query, key, value, PLAIN, is_causal=True)
    torch.testing.assert_close(found.double(), summed(query, key, value, lower, PLAIN), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 5])
def test_keys_of_a_group_are_neither_repeated_nor_copied(dtype: torch.dtype, queries: int) -> None:
    query, pool = torch.randn(1, 8, queries, 64, dtype=dtype), torch.randn(1, 2, 256, 64, dtype=dtype)
    keys, mask = pool[:, :, :200], torch.zeros(queries, 200, dtype=dtype)
    with NewTensors() as made:
        attend(query, keys, keys, PLAIN, mask=mask)
    assert made.sizes and max(made.sizes) < keys.numel() / 4


class Clock:
    """Stands in for the trial: seconds of each type."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.asked = seconds, list[Heads]()

    def __call__(self, dtypes: tuple[torch.dtype, ...], heads: Heads) -> list[float]:
        self.asked.append(heads)
        return [self.seconds[str(dtype).removeprefix("torch.")] for dtype in dtypes]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    cache_dtype.cache_clear()

    def start(**seconds: float) -> Clock:
        made = Clock(**seconds)
        monkeypatch.setattr(attention, "_attention_seconds", made)
        return made

    yield start
    cache_dtype.cache_clear()


def test_half_precision_is_kept_unless_float32_is_clearly_faster(clock: Any) -> None:
    heads = Heads(4, 8, 64)
    made = clock(bfloat16=1.3, float16=1.1, float32=1.0)
    assert cache_dtype(torch.bfloat16, "cpu", heads) == torch.float32
    assert cache_dtype(torch.float16, "cpu", heads) == torch.float16
    assert made.asked == [heads, heads]
    assert cache_dtype(torch.bfloat16, "cuda", heads) == torch.bfloat16
    assert cache_dtype(torch.float32, "cpu", heads) == torch.float32
    assert cache_dtype(torch.float64, "cpu", heads) == torch.float64
    assert cache_dtype(torch.float16, "cpu", heads, written_out=True) == torch.float32
    assert cache_dtype(torch.float64, "cpu", heads, written_out=True) == torch.float64
    assert len(made.asked) == 2


def test_the_trial_measures_every_type_it_is_asked_for() -> None:
    seconds = attention._attention_seconds((torch.bfloat16, torch.float32), Heads(2, 2, 8))
    assert len(seconds) == 2 and min(seconds) > 0


@pytest.mark.parametrize(
    ("family", "seconds", "expected", "asked"),
    [
        ("llama", 2.0, torch.float32, [Heads(2, 2, 8)]),
        ("llama", 0.5, torch.bfloat16, [Heads(2, 2, 8)]),
        ("gpt2", 0.5, torch.bfloat16, [Heads(4, 1, 8)]),
        ("gemma2", 0.5, torch.float32, []),  # its softcap is written out
    ],
)
def test_without_kernels_a_model_s_own_heads_are_tried(
    clock: Any,
    family: str,
    seconds: float,
    expected: torch.dtype,
    asked: list[Heads],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    made = clock(bfloat16=seconds, float32=1.0)
    runtime = DecoderRuntime(tiny_model(family, dtype=torch.bfloat16), owns_model=True)
    assert made.asked == asked
    runtime.forward([Feed(seq=0, tokens=(5, 9, 11), asked=(2,))])
    (pools,) = runtime._slots._pools.values()
    assert {tensor.dtype for tensor in (*pools[0].keys, *pools[0].values)} == {expected}
    assert ("float32 keys and values" in runtime.info.backend) is (expected == torch.float32)


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_kernel_reads_half_precision_itself(clock: Any, family: str) -> None:
    made = clock(bfloat16=2.0, float32=1.0)
    runtime = DecoderRuntime(tiny_model(family, dtype=torch.bfloat16), owns_model=True)
    assert made.asked == [] and {layer.dtype for layer in runtime._decoder_model.layout} == {torch.bfloat16}
    assert "float32 keys and values" not in runtime.info.backend


GIVEN: dict[str, dict[str, Any]] = {
    "a mask of its own": {"attention_mask": torch.zeros(1, 1, 1, 4)},
    "a sliding window": {"sliding_window": 2},
    "a softcap": {"softcap": 3.0},
    "attention sinks": {"s_aux": torch.zeros(6)},
    "a position bias": {"position_bias": torch.zeros(1, 6, 1, 4)},
}


class ValuesOnly:
    """Returns the last value, and applies the parameters that it is told to."""

    def __init__(self, supported: frozenset[str]) -> None:
        self.supported_params = supported

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: AttentionParams) -> torch.Tensor:
        return value[:, :, -1:].expand(-1, -1, query.shape[2], -1).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("words", GIVEN)
@pytest.mark.parametrize(
    ("supported", "refused"),
    [
        (SlotCache.supported_params, {"a mask of its own", "a position bias"}),
        (EqualLengthAttention.supported_params, GIVEN.keys() - {"a position bias"}),
        (FirstTokenAttention.supported_params, GIVEN.keys() - {"a position bias"}),
    ],
    ids=["slots", "equal lengths", "first token"],
)
def test_a_parameter_that_the_target_ignores_is_refused_by_name(
    words: str, supported: frozenset[str], refused: Any
) -> None:
    function = ALL_ATTENTION_FUNCTIONS[attention.ATTENTION_NAME]
    query, key, value = drawn(6, 6, 2, 4, batch=3)
    given = {"attention_mask": None, **GIVEN[words]}
    with attending(ValuesOnly(supported)):
        if words in refused:
            with pytest.raises(ModelError, match=f"^Linear attends with {words}, which this cache does not support$"):
                function(torch.nn.Linear(1, 1), query, key, value, **given)
            return
        out, weights = function(torch.nn.Linear(1, 1), query, key, value, **given)
    assert weights is None
    torch.testing.assert_close(out, value[:, None, :, -1].expand(3, 2, 6, 6))


def test_the_attention_function_refuses_to_run_without_a_target() -> None:
    with pytest.raises(ModelError, match="runs only inside it"):
        ALL_ATTENTION_FUNCTIONS[attention.ATTENTION_NAME](torch.nn.Linear(1, 1), *drawn(6, 6, 2, 4), None)
