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
from unspool.errors import OptionError
from unspool.kernels.library import kernels
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.weights.batch_invariance import batch_invariance
from unspool.runtimes.weights.packed_linear import pack_linears
from unspool.types import Feed


class OtherKernels(TorchFunctionMode):
    """PyTorch's products round as if a CPU had another kernel for each number of rows."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.linear, torch.addmm):
            result = result * (1 + result.shape[:-1].numel() * 1e-5)
        return result


@pytest.mark.parametrize("form", ["plain", "native"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_keep_their_bits_in_any_company(monkeypatch: pytest.MonkeyPatch, family: str, form: str) -> None:
    monkeypatch.setenv("UNSPOOL_LINEAR", form)
    is_packed = form == "native" and kernels() is not None
    with OtherKernels():
        runtime = DecoderRuntime(tiny_model(family), owns_model=True)
        assert runtime.info.batch_invariant
        assert runtime._decoder_model.batch_invariance.row_by_row is not is_packed
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
        for token in tokens:
            one_by_one = runtime.forward([Feed(seq=4, tokens=[token], asked=(0,), invariant=True)]).logits
        assert torch.equal(one_by_one, alone), "a pass of one row"
        other = runtime.forward([Feed(seq=3, tokens=tokens, asked=(4,))]).logits
        assert is_packed or not torch.equal(other, alone), "an ordinary pass uses the kernels for several rows"


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


def test_products_that_are_not_those_of_our_kernels_need_one_call_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 24), Conv1D(24, 24))
    assert batch_invariance(model) == (True, "")
    monkeypatch.setenv("UNSPOOL_LINEAR", "native")
    pack_linears(model, keep=False)
    assert batch_invariance(model) == (kernels() is None, "")
    model.append(nn.Linear(24, 8).half())
    assert batch_invariance(model) == (True, "")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral", "gpt_oss", "qwen3_moe"}))
def test_every_family_of_the_slot_cache_is_batch_invariant(family: str) -> None:
    runtime = DecoderRuntime(tiny_model(family), owns_model=True)
    assert runtime.info.batch_invariance_obstacle == ""
