"""Embeddings that are tied to the head: their rows are those of the plain weight, which is freed."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM, PreTrainedModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

import unspool
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.packed import PackedWeight
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.weights.lazy_weight import LazyWeight
from unspool.runtimes.weights.packed_linear import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

IDS = torch.tensor([[0, 39, 7, 7], [33, 1, 31, 32]])


@pytest.fixture(autouse=True)
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack every layer."""
    monkeypatch.setenv(VARIABLE, "native")


class Tied(nn.Module):
    """A model whose head shares the weight of some embeddings."""

    def __init__(self, *embeddings: nn.Embedding, head: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(embeddings)
        self.inner, self.head = nn.Linear(24, 24), head or nn.Linear(24, 40, bias=False)
        self.head.weight = embeddings[0].weight
        for embedding in embeddings:
            embedding.weight = embeddings[0].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states: Any = sum(embedding(ids) for embedding in self.embeddings)
        return self.head(self.inner(states))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_embeddings_of_any_class_read_the_packed_weight_and_the_plain_one_is_freed(dtype: torch.dtype) -> None:
    model = Tied(nn.Embedding(40, 24, padding_idx=7), Gemma3TextScaledWordEmbedding(40, 24, 0, 4.9)).to(dtype)
    weight, values = weakref.ref(model.head.weight), model.head.weight.detach().clone()
    expected = [embedding(IDS) for embedding in model.embeddings]
    kinds = [type(embedding) for embedding in model.embeddings]
    pack_linears(model, keep=False)
    assert weight() is None, "the plain weight is freed"
    assert [type(embedding) for embedding in model.embeddings] == kinds
    for embedding, rows in zip(model.embeddings, expected, strict=True):
        assert torch.equal(embedding(IDS), rows)
        assert torch.equal(embedding.weight, values)
    names = [name for name, _ in model.named_parameters()]
    assert names == ["embeddings.0.weight", "inner.bias"], "tied weights are one parameter, as before"
    with pytest.raises(IndexError):
        model.embeddings[0](torch.tensor([40]))


@torch.inference_mode()
def test_the_users_model_keeps_its_weight() -> None:
    model = Tied(nn.Embedding(40, 24))
    weight = model.head.weight
    pack_linears(model, keep=True)
    assert isinstance(model.head, PackedLinear)
    assert model.embeddings[0].weight is weight and model.head.weight is weight


def with_another_holder() -> Tied:
    model = Tied(nn.Embedding(40, 24))
    model.further = nn.Bilinear(1, 24, 40)
    model.further.weight = model.head.weight
    return model


@pytest.mark.parametrize(
    "model",
    [
        Tied(nn.Embedding(40, 24, max_norm=1.0)),
        Tied(nn.Embedding(40, 24), head=Conv1D(24, 40)),
        with_another_holder(),
    ],
    ids=["it changes rows", "the head is transposed", "another module needs the weight"],
)
@torch.no_grad()
def test_other_embeddings_stay_plain(model: Tied) -> None:
    """An embedding with a largest norm writes into its weight. `Conv1D` multiplies by its weight as it is."""
    weight = model.embeddings[0].weight
    expected = copy.deepcopy(model.embeddings[0])(IDS)
    pack_linears(model, keep=False)
    assert isinstance(model.head, PackedLinear)
    assert model.embeddings[0].weight is weight
    assert torch.equal(model.embeddings[0](IDS), expected)


@torch.inference_mode()
def test_two_heads_can_share_one_weight() -> None:
    model = Tied(nn.Embedding(40, 24))
    model.second = nn.Linear(24, 40)
    model.second.weight = model.head.weight
    weight, expected = weakref.ref(model.head.weight), model.embeddings[0](IDS)
    pack_linears(model, keep=False)
    assert weight() is None and torch.equal(model.embeddings[0](IDS), expected)


def olmo() -> PreTrainedModel:
    """A model without further parameters: its norms have none."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = OlmoConfig(vocab_size=VOCAB_SIZE, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **shape)
    return OlmoForCausalLM(config).eval()


MODELS = {
    "gpt2": lambda dtype: tiny_model("gpt2", dtype=dtype),
    "llama": lambda dtype: tiny_model("llama", dtype=dtype, tie_word_embeddings=True),
    "gemma3": lambda dtype: tiny_model("gemma3", dtype=dtype),
    "olmo": lambda dtype: olmo().to(dtype),
    "bloom": lambda dtype: tiny_model("bloom", dtype=dtype),
    "t5": lambda dtype: tiny_seq2seq("t5", dtype=dtype),
    "bart": lambda dtype: tiny_seq2seq("bart", dtype=dtype, scale_embedding=True),
}


def tied_embeddings(model: nn.Module) -> int:
    """Return how many embeddings read a packed weight."""
    return sum(isinstance(each, nn.Embedding) and type(each.weight) is LazyWeight for each in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", MODELS)
def test_a_tied_model_gives_the_same_bits_as_beside_its_plain_weight(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own model runs on the same packed layers, with its plain embedding."""
    MODELS[family](dtype).save_pretrained(tmp_path)
    model = type(MODELS[family](dtype)).from_pretrained(tmp_path, dtype=dtype)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    beside, alone = unspool.load(model), unspool.load(tmp_path)
    assert tied_embeddings(alone.model) == (3 if family in ("t5", "bart") else 1) and not tied_embeddings(model)

    whole_reads: list[PackedWeight] = []
    unpack = PackedWeight.unpacked
    monkeypatch.setattr(PackedWeight, "unpacked", lambda self: (whole_reads.append(self), unpack(self))[1])
    options: list[dict[str, Any]] = [{"ignore_eos": True, "logprobs": 3}, {"num_beams": 3}]
    for each in options:
        for _ in range(2):  # the second time from a recorded pass
            found, expected = (lm.generate([5, 6, 7], max_new_tokens=16, **each) for lm in (alone, beside))
            assert found.completions == expected.completions
    assert not whole_reads, "no pass unpacks the weight"
    assert alone.info.backend == beside.info.backend
