"""Batch invariance of linear layers, also on a CPU whose kernels make a row depend on its company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

import unspool
from tests.tiny_models import FAMILIES, tiny_model
from unspool.errors import ModelError, OptionError
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.weights import batch_invariance as module
from unspool.runtimes.weights.batch_invariance import RowByRow, batch_invariance
from unspool.runtimes.weights.packed_linear import pack_linears
from unspool.types import Feed

FORMS = ["plain", "packed"]


class OtherKernels(TorchFunctionMode):
    """Matrix products round as if a CPU had another kernel for each number of rows.

    is_hopeless: results differ from call to call, whatever the number of rows.
    """

    def __init__(self, *, is_hopeless: bool = False) -> None:
        super().__init__()
        self._is_hopeless, self._calls = is_hopeless, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in module._PRODUCTS:
            self._calls += 1
            count = self._calls if self._is_hopeless else result.shape[:-1].numel()
            result = result * (1 + count * 1e-5)
        return result


@pytest.fixture(autouse=True)
def nothing_tried_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIALS", {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_keep_their_bits_in_any_company(monkeypatch: pytest.MonkeyPatch, family: str, form: str) -> None:
    monkeypatch.setenv("UNSPOOL_LINEAR", form)
    with OtherKernels():
        runtime = DecoderRuntime(tiny_model(family), owns_model=True)
        assert runtime.info.batch_invariant and "row by row" in runtime.info.backend
        tokens = [5, 9, 3, 7, 11]
        alone = runtime.forward([Feed(seq=0, tokens=tokens, asked=(4,), invariant=True)]).logits
        others = [Feed(seq=seq, tokens=[seq] * 3, asked=(2,), invariant=True) for seq in range(20, 25)]
        beside = runtime.forward([*others, Feed(seq=1, tokens=tokens, asked=(4,), invariant=True)]).logits
        assert torch.equal(beside[-1:], alone)
        runtime.forward([Feed(seq=2, tokens=tokens[:2], asked=(), invariant=True)])
        in_parts = runtime.forward(
            [
                *(Feed(seq=s, tokens=[4], asked=(), invariant=True) for s in range(20, 25)),
                Feed(seq=2, tokens=tokens[2:], asked=(2,), invariant=True),
            ]
        ).logits
        assert torch.equal(in_parts, alone)
        other = runtime.forward([Feed(seq=3, tokens=tokens, asked=(4,))]).logits
        assert not torch.equal(other, alone), "an ordinary pass uses the kernels for several rows"


@pytest.mark.parametrize("form", FORMS)
def test_the_reason_names_the_layers_and_a_way_out(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("UNSPOOL_LINEAR", form)
    model = tiny_model("llama")
    with OtherKernels(is_hopeless=True):
        runtime = DecoderRuntime(model, owns_model=False)
        assert not runtime.info.batch_invariant
        with pytest.raises(ModelError, match="independent of other rows.*32 x 48 .*float32, . thread.*UNSPOOL_LINEAR"):
            runtime.forward([Feed(seq=0, tokens=[5], asked=(0,), invariant=True)])
        with pytest.raises(OptionError, match="batch_invariant.*is not possible for .*32 x 97 .*OMP_NUM_THREADS"):
            unspool.generate(model, torch.tensor([[5]]), batch_invariant=True)
    assert "32 x 97" in runtime.info.batch_invariance_obstacle


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mixtral", "routes rows to experts"), ("bloom", "its own cache"), ("xlm", "without a cache")],
)
def test_other_reasons_are_named(family: str, reason: str) -> None:
    with pytest.raises(OptionError, match=f"`batch_invariant` is not possible for .*{reason}"):
        unspool.generate(tiny_model(family), torch.tensor([[5]]), batch_invariant=True)


def test_matrices_outside_linear_layers_cannot_be_tried() -> None:
    assert "can treat its rows together" in batch_invariance(tiny_model("mixtral")).obstacle
    assert batch_invariance(nn.Sequential(nn.ReLU())).obstacle == "it has no linear layers"
    hooked = nn.Sequential(nn.Linear(8, 8))
    hooked[0].register_forward_hook(lambda *_: None)
    assert "`0` (Linear)" in batch_invariance(hooked).obstacle


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_trial_splits_those_products_alone_that_need_it(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("UNSPOOL_LINEAR", form)

    class OneShape(OtherKernels):
        def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            place = module._PRODUCTS.get(func)
            if place is None or 24 not in args[place + 1].shape:
                return func(*args, **(kwargs or {}))
            return super().__torch_function__(func, types, args, kwargs)

    model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 40), Conv1D(24, 40), Conv1D(24, 24))
    pack_linears(model, keep=False)
    with OneShape():
        found = batch_invariance(model)
    assert found.obstacle == "" and len(found.row_by_row) == 4
    assert all(24 in product.weight_shape for product in found.row_by_row)


@torch.no_grad()
def test_row_by_row_gives_the_same_up_to_rounding() -> None:
    rows, weight, bias = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3)
    with RowByRow() as mode:
        torch.testing.assert_close(F.linear(rows, weight, bias), rows @ weight.T + bias)
        torch.testing.assert_close(torch.addmm(bias, rows[0], weight.T), rows[0] @ weight.T + bias)
        assert F.linear(rows[:, :0], weight, bias).shape == (2, 0, 3)
    assert {product.func for product in mode.split} == {F.linear, torch.addmm}
    with RowByRow(frozenset()) as mode:
        F.linear(rows, weight, bias)
    assert not mode.split


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral", "gpt_oss", "qwen3_moe"}))
def test_every_family_of_the_slot_cache_is_batch_invariant(family: str) -> None:
    runtime = DecoderRuntime(tiny_model(family), owns_model=True)
    assert runtime.info.batch_invariance_obstacle == ""
