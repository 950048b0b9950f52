"""The runtime of a model whose patches come and go: sequences stay on the runtime that they began on."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.tiny_models import tiny_model
from unspool.errors import CapacityError, ModelError
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.current import CurrentRuntime
from unspool.types import Feed, Rows


def current(model: Any, *, owns_model: bool = False, **options: Any) -> CurrentRuntime:
    make = partial(runtime_of, owns_model=owns_model, **options)
    return CurrentRuntime(model, lambda model, attention: make(model, attention=attention), owns_model=owns_model)


def negate(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return -output


def feed(seq: int, tokens: list[int], **options: Any) -> Feed:
    return Feed(seq=seq, tokens=tokens, **{"asked": (len(tokens) - 1,), **options})


def own_rows(tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = tiny_model("llama")(torch.tensor([tokens])).logits[0]
    return logits


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("owns_model", [False, True])
def test_one_forward_serves_sequences_from_before_and_after_a_hook(owns_model: bool) -> None:
    model = tiny_model("llama")
    runtime = current(model, owns_model=owns_model)
    runtime.forward([feed(0, [5, 6]), feed(1, [9])])
    handle = model.lm_head.register_forward_hook(negate)
    options: dict[str, Any] = {"asked": (0, 1), "hidden": True, "layers": (1,)}
    rows: Rows = runtime.forward([feed(0, [7]), feed(2, [8, 9], **options), feed(1, [3], **options | {"asked": (0,)})])
    sign = -1 if owns_model else 1  # the modules of our own model are the ones that carry the hook
    close(rows.logits[0], sign * own_rows([5, 6, 7])[-1])
    close(rows.logits[1:3], -own_rows([8, 9]))
    close(rows.logits[3], sign * own_rows([9, 3])[-1])
    assert rows.hidden is not None and rows.inner is not None
    assert (rows.hidden.shape, len(rows.inner)) == ((3, 32), 3)
    handle.remove()
    runtime.fork(2, 3)
    assert runtime.truncate(3, 1) == 1
    rows = runtime.forward([feed(4, [8, 9]), feed(3, [9])])
    close(rows.logits[0], own_rows([8, 9])[-1])
    close(rows.logits[1], own_rows([8, 9])[-1])


def test_a_forward_that_fails_leaves_the_sequences_of_both_runtimes() -> None:
    model = tiny_model("llama")
    runtime = current(model, max_cache_tokens=4)
    runtime.forward([feed(0, [5, 6, 7])])
    model.lm_head.register_forward_hook(negate)
    with pytest.raises(CapacityError):
        runtime.forward([feed(0, [8, 9]), feed(1, [8, 9])])
    rows = runtime.forward([feed(0, [8]), feed(1, [8, 9])])
    close(rows.logits[0], own_rows([5, 6, 7, 8])[-1])
    close(rows.logits[1], -own_rows([8, 9])[-1])


def test_prefix_caching_ends_with_the_first_hook_and_comes_back() -> None:
    model, tokens = tiny_model("llama"), list(range(5, 40))
    runtime = current(model)
    runtime.forward([feed(0, tokens)])
    assert runtime.match_prefix(1, tokens, least=1, invariant=False) == len(tokens)
    handle = model.lm_head.register_forward_hook(negate)
    assert runtime.match_prefix(2, tokens, least=1, invariant=False) == 0
    assert not runtime.has_prefix_caching
    handle.remove()
    assert runtime.match_prefix(2, tokens, least=1, invariant=False) == len(tokens)


def test_a_plain_model_has_one_runtime_whatever_was_in_between() -> None:
    model = tiny_model("llama")
    runtime = current(model)
    plain = runtime.newest
    for _ in range(2):
        handle = model.lm_head.register_forward_hook(negate)
        runtime.forward([feed(0, [5])])
        assert runtime.newest is not plain and runtime.in_place
        handle.remove()
        runtime.release(0)
        runtime.forward([feed(0, [5])])
        assert runtime.newest is plain
        runtime.release(0)


def test_a_model_that_can_no_longer_run_fails_its_sequences_with_the_reason() -> None:
    model = tiny_model("llama")
    runtime = current(model)
    model.lm_head = torch.nn.Linear(3, 5)
    with pytest.raises(ModelError, match="mat1 and mat2"):
        runtime.forward([feed(0, [5])])
