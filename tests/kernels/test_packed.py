"""Products with packed weights: compared with float64 products, at each instruction set, alone and in company."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tests.kernels.levels import everywhere, num_streams, num_threads
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.packed import STREAMS, PackedWeight, linear

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

KINDS = ("float32", "bfloat16", "int8", "int4")
SIZES = ((1, 1), (7, 5), (33, 70), (64, 257), (100, 1056), (257, 32), (300, 544))
"""(outputs, inputs): below, at and above one block of outputs, one piece of inputs, and their multiples."""
ROWS = (0, 1, 2, 3, 5, 8, 9, 16, 17, 65, 259)


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(
    kind: str, outputs: int, inputs: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return the numbers of a weight, its scales, and its values in float64, [outputs, inputs]."""
    random = torch.Generator().manual_seed(seed)
    if kind in ("float32", "bfloat16"):
        numbers = made(outputs, inputs, seed=seed).to(getattr(torch, kind))
        return numbers, None, numbers.double()
    if kind == "int8":
        numbers = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
        scale = torch.rand(outputs, generator=random) / 64
        return numbers, scale, numbers.double() * scale.double()[:, None]
    numbers = torch.randint(0, 16, (outputs, inputs), generator=random, dtype=torch.uint8)
    pair = ((torch.rand(inputs // 32, outputs, 2, generator=random) - 0.5) / 4).bfloat16()
    scale, zero = (pair[..., index].T.double()[..., None] for index in (0, 1))
    values = (numbers.double().view(outputs, -1, 32) - 8) * scale + zero
    return numbers, pair, values.view(outputs, inputs)


def cases():
    return [(kind, *size) for kind, size in itertools.product(KINDS, SIZES) if kind != "int4" or size[1] % 32 == 0]


def most_error(kind: str, inputs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the largest error that the rounding of inputs and sums explains. --> [rows, outputs]"""
    sizes = inputs.double().abs() @ values.abs().T
    if kind in ("float32", "bfloat16"):
        return 1e-6 * sizes + 1e-12
    if kind == "int8":
        steps = inputs.double().abs().amax(1, keepdim=True) / 32512
        return steps / 2 * values.abs().sum(1) + 1e-6 * sizes
    groups = inputs.double().abs().view(len(inputs), inputs.shape[1] // 32, 32).amax(2) / 127
    return groups / 2 @ values.abs().view(len(values), -1, 32).sum(2).T + 1e-6 * sizes


@pytest.mark.parametrize(("kind", "outputs", "inputs"), cases())
def test_products_equal_those_in_float64(level, kind, outputs, inputs):
    numbers, scales, values = weight_of(kind, outputs, inputs)
    bias = made(outputs, seed=1)
    packed = PackedWeight(numbers, scales=scales, bias=bias)
    for rows in ROWS:
        x = made(rows, inputs, seed=2)
        found = linear(x, packed)
        assert found.shape == (rows, outputs) and found.dtype == torch.float32
        error = (found.double() - (x.double() @ values.T + bias.double())).abs()
        assert (error <= most_error(kind, x, values) + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "outputs", "inputs"), cases())
def test_a_row_has_the_same_bits_in_any_company(level, kind, outputs, inputs, dtype):
    numbers, scales, _ = weight_of(kind, outputs, inputs)
    packed = PackedWeight(numbers, scales=scales)
    x = made(270, inputs).to(dtype)
    whole = linear(x, packed)
    for start, end in itertools.combinations((0, 1, 2, 4, 7, 9, 17, 40, 270), 2):
        assert torch.equal(linear(x[start:end], packed), whole[start:end])
    assert torch.equal(linear(x.flip(0), packed), whole.flip(0))
    others = torch.cat([x[:1], made(15, inputs, seed=9).to(dtype) * 1e6])
    assert torch.equal(linear(others, packed)[:1], whole[:1])


@pytest.mark.parametrize(("kind", "outputs", "inputs"), cases())
def test_all_instruction_sets_streams_and_thread_counts_give_the_same_bits(monkeypatch, kind, outputs, inputs):
    numbers, scales, _ = weight_of(kind, outputs, inputs)
    x = made(9, inputs)

    def products() -> Iterator[torch.Tensor]:
        for count in STREAMS:
            with num_streams(count):
                packed = PackedWeight(numbers, scales=scales)
                yield torch.cat([linear(x[:rows], packed) for rows in (1, 2, 4, 9)])

    found = everywhere(monkeypatch, products)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize(("kind", "outputs", "inputs"), cases())
def test_unpacking_returns_the_same_bits(level, kind, outputs, inputs):
    numbers, scales, _ = weight_of(kind, outputs, inputs)
    packed = PackedWeight(numbers, scales=scales, bias=made(outputs))
    assert torch.equal(packed.unpacked(), numbers)
    found = packed.scales()
    assert found is scales is None or torch.equal(found, scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [*SIZES, (641, 257), (2245, 300)])
def test_rows_have_the_bits_of_an_embedding(level, outputs, inputs, dtype):
    """With one thread, the two largest weights have units of two and four blocks, and a last one of fewer."""
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    numbers = torch.randint(torch.iinfo(bits).min, torch.iinfo(bits).max, (outputs, inputs), dtype=bits).view(dtype)
    every = torch.arange(outputs).flip(0)
    for threads in (1, 3):
        with num_threads(threads):
            packed = PackedWeight(numbers, bias=made(outputs))
            for ids in (every, every.int(), every[::2], every[:0], every[0], every.repeat(2, 3)):
                found = packed.rows(ids)
                assert found.dtype == dtype and found.is_contiguous()
                assert torch.equal(found.view(bits), F.embedding(ids, numbers).view(bits))


@pytest.mark.parametrize("bad", [-1, 40, -(2**63), 2**63 - 1])
def test_a_row_that_does_not_exist_is_refused_as_by_an_embedding(bad):
    ids = torch.tensor([[0, 39], [bad, 1]])
    numbers = made(40, 8)
    for read in (PackedWeight(numbers).rows, lambda ids: F.embedding(ids, numbers)):
        with pytest.raises(IndexError):
            read(ids)


def test_ids_of_rows_must_be_integers():
    with pytest.raises(ValueError, match="ids must be int64 or int32 on the CPU, got torch.float32 on cpu"):
        PackedWeight(made(8, 4)).rows(torch.ones(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transposed_weight_is_packed_alike(kind):
    numbers, scales, _ = weight_of(kind, 70, 96)
    strided = numbers.T.contiguous().T
    assert not strided.is_contiguous()
    x = made(3, 96)
    assert torch.equal(linear(x, PackedWeight(strided, scales=scales)), linear(x, PackedWeight(numbers, scales=scales)))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_can_have_any_strides_and_dimensions(kind):
    numbers, scales, _ = weight_of(kind, 40, 64)
    packed = PackedWeight(numbers, scales=scales)
    x = made(2, 64, 3).transpose(1, 2)
    found = linear(x, packed)
    assert found.shape == (2, 3, 40)
    assert torch.equal(found, linear(x.contiguous().view(6, 64), packed).view(2, 3, 40))
    assert torch.equal(linear(x[0, 0], packed), found[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_inputs_are_multiplied_exactly_and_results_are_rounded_as_those_of_operators(level, kind):
    numbers, scales, _ = weight_of(kind, 40, 64)
    bias, x, residual = made(40), made(5, 64).bfloat16(), made(5, 40, seed=3).bfloat16()
    packed = PackedWeight(numbers, scales=scales, bias=bias)
    in_pairs = kind == "bfloat16" and level in ("avx512bf16", "amx")  # sums of another order
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if in_pairs else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(linear(x, packed), linear(x.float(), packed).bfloat16(), **tolerance)
    assert torch.equal(linear(x, packed, residual), linear(x, packed) + residual)
    wide = residual.float()
    assert torch.equal(linear(x.float(), packed, wide), linear(x.float(), packed) + wide)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_bfloat16_products_equal_those_in_float64(level, outputs, inputs):
    """The rounding of a result is at most 2 ** -9 of it, and that of its sum at most 1e-6 of the sum of sizes."""
    numbers, _, values = weight_of("bfloat16", outputs, inputs)
    packed = PackedWeight(numbers)
    for rows in ROWS:
        x = made(rows, inputs, seed=2).bfloat16()
        expected = x.double() @ values.T
        error = (linear(x, packed).double() - expected).abs()
        assert (error <= 2**-8 * expected.abs() + most_error("bfloat16", x, values)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_other_rows_alone(level, kind, bad):
    numbers, scales, _ = weight_of(kind, 40, 64)
    packed = PackedWeight(numbers, scales=scales)
    x = made(3, 64)
    expected = linear(x, packed)
    x[1, 7] = bad
    found = linear(x, packed)
    assert not found[1].isfinite().any()
    assert torch.equal(found[::2], expected[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_gives_the_bias(level, kind):
    numbers, scales, _ = weight_of(kind, 40, 64)
    bias = made(40)
    assert torch.equal(linear(torch.zeros(1, 64), PackedWeight(numbers, scales=scales, bias=bias))[0], bias)


def test_tracers_see_one_call():
    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    calls: list = []
    packed, x = PackedWeight(made(8, 4)), made(2, 4)
    with Seen():
        found = linear(x, packed)
    assert calls == [linear] and torch.equal(found, linear(x, packed))


def test_unfit_arguments_are_refused():
    packed = PackedWeight(made(8, 4))
    for inputs in (made(2, 5), made(2, 4).double()):
        with pytest.raises(ValueError, match=r"inputs must be float32 or bfloat16 \[..., 4\]"):
            linear(inputs, packed)
    with pytest.raises(ValueError, match=r"a residual must be torch.float32 \[2, 8\]"):
        linear(made(2, 4), packed, made(2, 7))
