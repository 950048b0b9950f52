"""Weights in 8 and 4 bits against their formulas, written out plainly, and models that hold them."""

from __future__ import annotations

import copy
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import unspool
from tests.held_out import perplexity, tales
from tests.sampling import sampled
from tests.text.tokenizers import byte_level
from tests.tiny_models import FAMILIES, GENERAL, RECOMPUTED, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool import ModelError, OptionError
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.quantized import quantize as weight_only
from unspool.runtimes.quantized import rounding, weights
from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.quantized.quantize import quantize_linears
from unspool.runtimes.quantized.rounding import Bits
from unspool.runtimes.quantized.weights import PackedQuantized, QuantizedWeight, UnpackedQuantized, quantized_weight
from unspool.runtimes.weights.lazy_weight import LazyWeight

BITS: tuple[Bits, Bits] = ("int8", "int4")


def rounded(weight: torch.Tensor, bits: str) -> torch.Tensor:
    """Return a weight [height, width] as the formula rounds it."""
    parts = weight.float().reshape(-1, 32 if bits == "int4" else weight.shape[1])
    least, most = parts.min(1, keepdim=True).values, parts.max(1, keepdim=True).values
    if bits == "int8":
        zero, limits, scale = 0.0, (-127, 127), torch.maximum(-least, most) / 127
    else:
        limits, scale = (-8, 7), ((most - least) / 15).bfloat16().float()
        zero = (least + 8 * scale).bfloat16().float()
    numbers = torch.round((parts - zero) / scale).nan_to_num(0).clamp(*limits)
    return (numbers * scale + zero).reshape(weight.shape)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference in a row, relative to the row's largest number."""
    return float(((found.double() - expected.double()).abs().amax(-1) / expected.double().abs().amax(-1)).max())


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ours", "PyTorch"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights are for our kernels, or for PyTorch's products."""
    if request.param == "PyTorch":
        monkeypatch.setenv(VARIABLE, "off")
    elif kernels() is None:
        pytest.skip(f"no kernels here: {obstacle()}")
    return request.param


def held(weight: torch.Tensor, bits: Bits, bias: torch.Tensor | None = None) -> QuantizedWeight:
    return quantized_weight(weight, bias, bits, HugePages())


def errors(place: str, bits: Bits) -> float:
    """Return how far products can be off: our kernels round inputs, to 16 bits or in groups to 8 bits."""
    return {"int8": 2e-4, "int4": 8e-3}[bits] if place == "ours" else 1e-6


SIZES: dict[Bits, list[tuple[int, int]]] = {
    "int8": [(7, 24), (1, 33), (100, 500)],
    "int4": [(7, 32), (64, 64), (150, 96)],
}


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 130])
@pytest.mark.parametrize(("bits", "size"), [(bits, size) for bits, sizes in SIZES.items() for size in sizes], ids=str)
def test_products_are_those_of_the_formula(place: str, bits: Bits, size: tuple[int, int], rows: int) -> None:
    weight = made(*size) + 0.3
    weight[:1, :32] = 0.7
    inputs = made(rows, size[1], seed=1) * made(rows, 1, seed=2).exp()
    quantized = held(weight, bits)
    assert isinstance(quantized, PackedQuantized if place == "ours" else UnpackedQuantized)
    assert torch.equal(quantized.dense(), rounded(weight, bits))
    found = quantized.times(inputs)
    assert found.shape == (rows, size[0]) and found.dtype == torch.float32
    expected = inputs.double() @ rounded(weight, bits).double().T
    if rows:
        assert (found - expected).norm() <= errors(place, bits) * expected.norm()


@pytest.mark.parametrize("bits", BITS)
def test_rows_and_columns_of_zeros_stay_zeros_and_what_is_not_finite_stays_so(place: str, bits: Bits) -> None:
    weight = made(6, 64)
    weight[2] = 0.0
    inputs = made(5, 64, seed=1)
    inputs[1] = 0.0
    inputs[3, 7], inputs[4, 9] = float("nan"), float("inf")
    found = held(weight, bits).times(inputs)
    assert found[1].eq(0).all() and found[0, 2] == 0
    assert found[[0, 2]].isfinite().all()
    assert not found[3, :2].isfinite().any() and not found[4, :2].isfinite().any()


def test_inputs_are_not_rounded_to_8_bits(place: str) -> None:
    """One input of a hundred times the others: 8 bits for a row would leave these about one digit."""
    weight, inputs = made(64, 256), made(3, 256, seed=1)
    inputs[:, 5] *= 100
    expected = inputs @ rounded(weight, "int8").T
    assert distance(held(weight, "int8").times(inputs), expected) < 5e-4


@pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")
@pytest.mark.parametrize("bits", BITS)
def test_rows_have_the_same_bits_in_any_company(bits: Bits) -> None:
    quantized, inputs = held(made(37, 96), bits), made(300, 96, seed=1)
    inputs[::3] *= 1000
    together = quantized.times(inputs)
    for start, end in ((0, 1), (1, 3), (40, 57), (299, 300), (3, 299)):
        assert torch.equal(quantized.times(inputs[start:end]), together[start:end])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_bias_is_added_and_the_dtype_stays(place: str, bits: Bits, dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 40).to(dtype)
    inputs = made(2, 3, 64).to(dtype)
    found = QuantizedLinear(layer, bits)(inputs)
    assert found.dtype == dtype and found.shape == (2, 3, 40)
    expected = inputs.float() @ rounded(layer.weight.detach(), bits).T + layer.bias.float()
    assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_the_same_in_blocks_and_as_a_whole(place: str, bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = made(300, 64), made(3, 64, seed=1)
    whole = held(weight, bits)
    found = whole.times(inputs)
    for module in (rounding, weights):
        monkeypatch.setattr(module, "ROUNDED_AT_ONCE", 1000)
    assert torch.equal(held(weight, bits).dense(), whole.dense())
    torch.testing.assert_close(whole.times(inputs), found, rtol=1e-5, atol=1e-5)


# --- layers ---------------------------------------------------------------------------------------------------------


def layer_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    plain = Conv1D(40, 64) if kind == "Conv1D" else nn.Linear(64, 40, bias=kind == "biased")
    if plain.bias is not None:
        nn.init.normal_(plain.bias)
    return plain.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["biased", "bare", "Conv1D"])
@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_a_quantized_layer_is_the_plain_one_with_a_rounded_weight(bits: Bits, kind: str, dtype: torch.dtype) -> None:
    plain = layer_of(kind, dtype)
    layer = QuantizedLinear(plain, bits)
    weight = plain.weight.T if kind == "Conv1D" else plain.weight
    inputs = made(2, 3, 128).to(dtype)[..., ::2]
    expected = F.linear(inputs.float(), rounded(weight, bits), None if plain.bias is None else plain.bias.float())
    found = layer(inputs)
    assert found.shape == (2, 3, 40) and found.dtype == dtype
    assert distance(found, expected) < (5e-4 if (bits, dtype) == ("int8", torch.float32) else 2e-2)
    assert layer.weight.shape == plain.weight.shape and layer.weight.dtype == dtype
    assert distance(layer.weight @ torch.eye(plain.weight.shape[1]).to(dtype), layer.dense()) == 0


def test_a_quantized_weight_is_made_when_it_is_read_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(layer_of("bare"), "int8")
    dense, calls = layer.dense(), []
    monkeypatch.setattr(QuantizedLinear, "dense", lambda self: calls.append(self) or dense)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.dim() == 2
    assert weight.device.type == "cpu" and not calls
    assert torch.equal(weight.float() + 0, dense) and len(calls) == 1
    with pytest.raises(TypeError, match="cannot be changed"):
        weight.div_(2)


def test_a_quantized_weight_that_is_read_in_every_pass_is_kept_until_its_type_changes() -> None:
    layer = QuantizedLinear(layer_of("bare"), "int8")
    dense = layer.dense()
    for _ in range(3):
        assert type(layer.weight) is LazyWeight and torch.equal(layer.weight * 1, dense)
    assert layer.weight is layer.weight and torch.equal(layer.weight, dense)
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.weight * 1, dense.bfloat16())


def test_a_quantized_layer_becomes_another_floating_type_with_its_model() -> None:
    layer = QuantizedLinear(layer_of("biased"), "int8").bfloat16()
    assert layer.dtype == layer.weight.dtype == layer.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("attempt", [copy.deepcopy, pickle.dumps, lambda layer: layer.state_dict()])
def test_a_quantized_layer_is_not_copied_or_saved_without_its_weight(attempt: Callable[[nn.Module], Any]) -> None:
    layer = QuantizedLinear(layer_of("biased"), "int8")
    with pytest.raises(TypeError, match="save the model it was made from"):
        attempt(layer)
    with pytest.raises(TypeError, match="save the model it was made from"):
        attempt(nn.Sequential(layer))


# --- models ---------------------------------------------------------------------------------------------------------


def by_hand(model: PreTrainedModel, bits: str) -> PreTrainedModel:
    """Return a copy of the model whose plain layers hold rounded weights."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if hasattr(module, "_rescale_layers"):
            module._rescale_layers()
    head = twin.get_output_embeddings()
    with torch.no_grad():
        if head is not None:
            head.weight = nn.Parameter(head.weight.clone())  # an embedding that shares it stays as it was
        for module in twin.modules():
            if type(module).__name__ in ("Linear", "Conv1D", "FalconLinear"):
                is_turned = isinstance(module, Conv1D)
                weight = module.weight.T if is_turned else module.weight
                chosen = "int8" if module is head or weight.shape[1] % 32 else bits
                module.weight.copy_(rounded(weight, chosen).T if is_turned else rounded(weight, chosen))
    return twin


def cases() -> list[tuple[str, Bits]]:
    many = [(family, "int8") for family in (*FAMILIES, *GENERAL, *RECOMPUTED)]
    few = ("gpt2", "llama", "bloom", "falcon", "rwkv", "mamba")
    return [*sampled(many, 10), *((family, bits) for family in few for bits in BITS)]


@pytest.mark.parametrize(("family", "bits"), dict.fromkeys(cases()), ids=str)
def test_a_quantized_family_says_what_it_says_with_rounded_weights(family: str, bits: Bits) -> None:
    model, ids = tiny_model(family), torch.tensor([[5, 6, 7, 8, 9, 10]])
    twin = by_hand(model, bits)
    assert quantize_linears(model, bits) > 0
    with torch.no_grad():
        found, expected = model(ids).logits[0], twin(ids).logits[0]
    assert distance(found, expected) < (1e-2 if bits == "int8" else 0.1)
    info = runtime_of(model, owns_model=True).info
    assert "quantized as int8" in info.backend and ("quantized as int4" in info.backend) == (bits == "int4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for family, model in {
        "gpt2": tiny_model("gpt2", n_embd=64),
        "llama": tiny_model("llama", hidden_size=64, intermediate_size=128),
        "bloom": tiny_model("bloom", hidden_size=64),
        "openai": tiny_model("openai"),
        "t5": tiny_seq2seq("t5"),
        "half": tiny_model("llama", dtype=torch.float16),
    }.items():
        found[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(found[family])
        byte_level().save_pretrained(found[family])
    return found


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4, "early_stopping": True},
    "sampling": {"do_sample": True, "temperature": 0.8, "seed": 3, "num_return_sequences": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
}
PATHS = {
    "gpt2": "slot cache",
    "llama": "slot cache",
    "bloom": "generic backend",
    "openai": "recomputation",
    "t5": "passes",
}


def stored(family: str, folders: dict[str, Path]) -> PreTrainedModel:
    made = tiny_seq2seq(family) if family == "t5" else tiny_model(family)
    return type(made).from_pretrained(folders[family])


@pytest.mark.parametrize("family", PATHS)
def test_a_model_loaded_in_8_bits_writes_what_one_with_rounded_weights_writes(
    family: str, folders: dict[str, Path]
) -> None:
    quantized = unspool.load(folders[family], quantize="int8")
    assert quantized.info.backend.startswith(PATHS[family])
    twin = by_hand(stored(family, folders), "int8")
    by_formula = unspool.load(twin)
    for name, options in SEARCHES.items():
        if family in ("bloom", "openai", "t5") and name == "contrastive":
            continue
        found, expected = (
            [each.token_ids for each in lm.generate([5, 6, 7, 8], max_new_tokens=8, **options).completions]
            for lm in (quantized, by_formula)
        )
        assert found == expected, name
    theirs = twin.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=8, do_sample=False)
    start = 1 if family == "t5" else 4
    found = quantized.generate([5, 6, 7, 8], max_new_tokens=8).completions[0].token_ids
    assert found == tuple(theirs[0, start : start + len(found)].tolist())


@pytest.mark.parametrize("family", PATHS)
def test_a_model_loaded_in_4_bits_thinks_of_its_texts_what_one_with_rounded_weights_does(
    family: str, folders: dict[str, Path]
) -> None:
    quantized = unspool.load(folders[family], quantize="int4")
    assert "quantized as int4" in quantized.info.backend and quantized.info.backend.startswith(PATHS[family])
    by_formula = unspool.load(by_hand(stored(family, folders), "int4"))
    for name in ("greedy", "beams", "sampling"):
        for each in quantized.generate([5, 6, 7, 8], max_new_tokens=5, **SEARCHES[name]).completions:
            found, expected = (lm.score([5, 6, 7, 8], each.token_ids).logprobs for lm in (quantized, by_formula))
            assert found == pytest.approx(expected, abs=0.3), name
            assert found != pytest.approx(unspool.load(folders[family]).score([5, 6, 7, 8], each.token_ids).logprobs)


@pytest.mark.usefixtures("unforced_layers")
def test_info_counts_what_was_quantized(folders: dict[str, Path]) -> None:
    counted = {
        bits: unspool.load(folders["gpt2"], quantize=bits, pack=pack).info.backend
        for bits, pack in (("int8", "auto"), ("int4", False))
    }
    assert counted["int8"].endswith("0 of 9 linear layers packed (9 quantized as int8)")
    both = "(packing is off; 8 quantized as int4; 1 quantized as int8)"
    assert counted["int4"].endswith(f"0 of 9 linear layers packed {both}")
    experts = tiny_model("mixtral")
    quantize_linears(experts, "int8")
    assert (
        "% of the weights are in no linear layer and stay as they are"
        in runtime_of(experts, owns_model=True).info.backend
    )


def test_stored_half_precision_is_widened_once_its_layers_are_quantized(folders: dict[str, Path]) -> None:
    for options in ({}, {"dtype": "float32"}):
        lm = unspool.load(folders["half"], quantize="int8", **options)
        assert ", float32, " in lm.info.backend
        module = lm.model
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
        assert {each.dtype for each in module.modules() if isinstance(each, QuantizedLinear)} == {torch.float32}
    assert ", bfloat16, " in unspool.load(folders["half"], quantize="int8", dtype="bfloat16").info.backend


def test_a_tied_head_is_quantized_and_the_embedding_is_not() -> None:
    model = tiny_model("gpt2")
    table = model.get_input_embeddings().weight
    before = table.detach().clone()
    quantize_linears(model, "int4")
    assert model.get_input_embeddings().weight is table and torch.equal(table, before)
    assert model.get_output_embeddings().bits == "int8"


def test_a_layer_in_two_places_is_quantized_once() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    quantize_linears(model, "int8")
    assert model.model.layers[1].mlp.up_proj is model.model.layers[0].mlp.up_proj
    assert isinstance(model.model.layers[1].mlp.up_proj, QuantizedLinear)


def test_layers_that_do_more_than_multiply_stay_as_they_are() -> None:
    class Doubling(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model = tiny_model("llama")
    model.doubling, model.hooked = Doubling(32, 32), nn.Linear(32, 32)
    model.attention = nn.MultiheadAttention(32, 2)
    model.hooked.register_forward_hook(lambda *_: None)
    quantize_linears(model, "int8")
    assert type(model.doubling) is Doubling and type(model.hooked) is nn.Linear
    assert not isinstance(model.attention.out_proj, QuantizedLinear)


def test_plain_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, alive = tiny_model("llama"), []
    weights = [weakref.ref(each.weight) for each in model.modules() if type(each) is nn.Linear]

    def counting(layer: nn.Linear, bits: Bits, pages: Any) -> QuantizedLinear:
        alive.append(sum(weight() is not None for weight in weights))
        return QuantizedLinear(layer, bits, pages)

    monkeypatch.setattr(weight_only, "QuantizedLinear", counting)
    quantize_linears(model, "int8")
    tied = 0 if model.get_output_embeddings() is None else 1
    assert alive == list(range(len(weights), 0, -1)) and len(weights) == 15 and tied


# --- weights that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float32, math.nan), (torch.float32, -math.inf), (torch.bfloat16, math.inf), (torch.float16, math.nan)],
)
@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "lm_head"), ("llama", "model.layers.1.mlp.up_proj"), ("gpt2", "transformer.h.0.attn.c_attn")],
)
@pytest.mark.parametrize("bits", BITS)
def test_a_weight_that_is_not_finite_is_refused_by_its_name(
    bits: Bits, family: str, name: str, value: float, dtype: torch.dtype
) -> None:
    model = tiny_model(family, dtype=dtype)
    with torch.no_grad():
        model.get_submodule(name).weight[3, 5] = value
    with pytest.raises(ModelError, match=rf"`{name}\.weight` holds NaN or infinite numbers.*leave out `quantize`"):
        quantize_linears(model, bits)


@pytest.mark.parametrize("bits", BITS)
def test_a_checkpoint_that_is_not_finite_is_refused_by_name(bits: Bits, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"`model.layers.0.self_attn.q_proj.weight` holds NaN"):
        unspool.load(tmp_path, tokenizer=None, quantize=bits)


# --- company --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_a_batch_is_bit_equal_to_its_prompts_alone(place: str, bits: Bits, folders: dict[str, Path]) -> None:
    lm = unspool.load(folders["llama"], quantize=bits)
    assert lm.info.batch_invariant
    prompts = [[5, 6, 7, 8], [30, 31], [9, 9, 9, 40, 41, 42, 43]]
    options = {"max_new_tokens": 6, "batch_invariant": True, "logprobs": 2}
    together = lm.generate(prompts, **options)
    for prompt, found in zip(prompts, together, strict=True):
        alone = lm.generate(prompt, **options)
        assert found.completions[0].logprobs == alone.completions[0].logprobs


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "`quantize` must be 'int8', 'int4' or None, got 'int3'"),
        ({"quantize": True}, "`quantize` must be 'int8', 'int4' or None, got True"),
        ({"quantize": "int8", "device": "cuda:0"}, "is for models on a CPU, and `device` is 'cuda:0'"),
        ({"quantize": "int8", "device": "meta"}, "is for models on a CPU, and `device` is 'meta'"),
        ({"quantize": "int4", "load_in_8bit": True}, "is for plain weights, and `load_in_8bit` quantizes them as well"),
        (
            {"quantize": "int4", "quantization_config": {"quant_method": "torchao"}},
            "is for plain weights, and `quantization_config` quantizes them as well",
        ),
    ],
)
def test_what_cannot_be_quantized_is_said(options: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    with pytest.raises(OptionError) as caught:
        unspool.load(folders["gpt2"], **options)
    assert message in str(caught.value)


def test_weights_that_go_to_an_accelerator_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(OptionError, match="is for models on a CPU, and `device_map` is 'auto'"):
        unspool.load(folders["gpt2"], quantize="int8", device_map="auto")


def test_weights_that_are_stored_quantized_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    text = (folders["gpt2"] / "config.json").read_text()
    stored = '{"quantization_config": {"quant_method": "fp8"},'
    (tmp_path / "config.json").write_text(text.replace("{", stored, 1))
    with pytest.raises(OptionError, match="is for plain weights, and these are stored quantized by fp8"):
        unspool.load(tmp_path, quantize="int8")


def test_a_loaded_model_is_not_quantized() -> None:
    with pytest.raises(ModelError, match="`quantize` is an option of loading and the model is loaded already"):
        unspool.load(tiny_model("gpt2"), quantize="int8")


def test_a_model_without_layers_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_only, "_fits", lambda layer: False)
    with pytest.raises(ModelError, match="needs linear layers to be quantized"):
        unspool.load(folders["gpt2"], quantize="int8")


# --- quality --------------------------------------------------------------------------------------------------------


@pytest.fixture
def some_tales() -> Iterator[list[str]]:
    yield sampled([tale for tale in tales() if len(tale) < 8000], 4)


@pytest.mark.model
def test_few_bits_cost_the_embedded_model_little_perplexity(place: str, some_tales: list[str]) -> None:
    plain = perplexity(unspool.load(), some_tales)
    assert perplexity(unspool.load(quantize="int8"), some_tales) == pytest.approx(plain, rel=0.01)
    four = perplexity(unspool.load(quantize="int4"), some_tales)
    assert plain < four < 1.04 * plain
