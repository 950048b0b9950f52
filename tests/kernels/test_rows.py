"""RMSNorm and rotary embeddings: the bits of PyTorch's operators, at each instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.levels import num_threads
from tests.kernels.test_packed import made
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.rows import Norm, add, gather, rms_norm, rotate, sum_lanes

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def in_operators(x: torch.Tensor, weight: torch.Tensor, *, rounds: bool) -> torch.Tensor:
    """Return the norm as Llama computes it, or as Gemma does."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight.to(x.dtype) * normed.to(x.dtype) if rounds else (normed * weight.float()).to(x.dtype)


@DTYPES
@pytest.mark.parametrize("rounds", [True, False], ids=["llama", "gemma"])
@pytest.mark.parametrize("width", [8, 9, 31, 64, 100, 576, 1000, 2048, 4099, 16400])
def test_a_norm_has_the_bits_of_its_operators(level: str, dtype: torch.dtype, rounds: bool, width: int) -> None:
    if sum_lanes() is None:
        pytest.skip("PyTorch sums in another order here")
    weight = made(width, seed=1).to(dtype)
    norm = Norm(weight, 1e-5, dtype, rounds=rounds)
    for shape in ((1, 1, width), (5, width), (1, 40, 2, width)):
        x = (made(*shape) * 3).to(dtype)
        expected = in_operators(x, weight, rounds=rounds)
        assert torch.equal(rms_norm(x, norm), expected)
        with num_threads(1):
            assert torch.equal(rms_norm(x, norm), expected)
    swapped, part = x.transpose(1, 2), x[:, :, :1].transpose(1, 2)
    for view in (swapped, part):
        found, expected = rms_norm(view, norm), in_operators(view, weight, rounds=rounds)
        assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_a_row_that_is_not_finite_stays_alone() -> None:
    if sum_lanes() is None:
        pytest.skip("PyTorch sums in another order here")
    x, weight = made(4, 100), made(100, seed=1)
    x[1, 3], x[2, 5] = torch.inf, torch.nan
    found = rms_norm(x, Norm(weight, 1e-5, torch.float32, rounds=False))
    assert torch.equal(found.nan_to_num(7.0), in_operators(x, weight, rounds=False).nan_to_num(7.0))
    assert found[0].isfinite().all() and found[3].isfinite().all()


def test_a_norm_refuses_other_tensors() -> None:
    norm = Norm(made(16), 1e-5, torch.float32, rounds=False, lanes=8)
    for x in (made(2, 15), made(2, 16).bfloat16(), made(16, 2).T):
        with pytest.raises(ValueError, match="a norm of torch.float32"):
            rms_norm(x, norm)


def turned(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


@DTYPES
@pytest.mark.parametrize("width,rotated", [(64, 64), (128, 128), (6, 6), (34, 34), (80, 32), (20, 2)])
def test_a_rotation_has_the_bits_of_its_operators(level: str, dtype: torch.dtype, width: int, rotated: int) -> None:
    for rows in (1, 3, 200):
        wide = made(1, rows, 12 * width).to(dtype)
        own = wide[..., : 4 * width].contiguous().view(1, rows, 4, width).transpose(1, 2)
        part = wide[..., width : 5 * width].view(1, rows, 4, width).transpose(1, 2)
        shared, cos, sin = part.contiguous(), *made(2, 1, 1, rows, rotated, seed=2).to(dtype)
        for x in (own, part, shared, shared[:, :, :1]):
            first, factors = x[..., :rotated], [each[:, :, : x.shape[2]] for each in (cos, sin)]
            expected = torch.cat((first * factors[0] + turned(first) * factors[1], x[..., rotated:]), dim=-1)
            assert torch.equal(rotate(x, *factors, rotated // 2), expected)
        by_rows = rotate(own.transpose(1, 2), cos.transpose(1, 2), sin.transpose(1, 2), rotated // 2)
        assert torch.equal(by_rows.transpose(1, 2), rotate(own, cos, sin, rotated // 2))


@pytest.mark.parametrize(
    "x,cos",
    [
        (made(1, 2, 3, 8), made(1, 1, 3, 8).bfloat16()),
        (made(1, 2, 3, 8).double(), made(1, 1, 3, 8).double()),
        (made(2, 2, 3, 8), made(2, 1, 3, 8)),
        (made(2, 3, 8), made(1, 3, 8)),
        (made(1, 2, 3, 8), made(1, 1, 2, 8)),
        (made(1, 2, 3, 8), made(1, 1, 3, 6)),
        (made(1, 2, 8, 3).transpose(2, 3), made(1, 1, 3, 8)),
    ],
)
def test_a_rotation_refuses_other_tensors(x: torch.Tensor, cos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rotate"):
        rotate(x, cos, cos, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("ids", [[], [3], [4, 0, 4], [[1, 2], [0, 3]]])
def test_rows_of_a_table_are_those_of_an_embedding(dtype: torch.dtype, ids: Any) -> None:
    table, index = (made(5, 7, seed=1) * 9).to(dtype), torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(gather(table, index), table[index])
    assert torch.equal(gather(table.T.contiguous().T, index), table[index]), "of any strides"
    if index.ndim == 1:
        assert torch.equal(gather(table[None], index), table[None][:, index])


def test_a_lookup_names_what_is_wrong() -> None:
    table = made(5, 7)
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match=r"must be in \[0, 5\)"):
            gather(table, torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match="ids must be int64 on the CPU, got torch.int32"):
        gather(table, torch.tensor([0], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"a table must be on the CPU and \[..., n, width\], got \[2, 5, 7\]"):
        gather(made(2, 5, 7), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 64), (2, 5, 33), (0, 4)])
def test_a_sum_has_the_bits_of_pytorch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, z = made(*shape, seed=1).to(dtype), (made(*shape, seed=2) * 300).to(dtype)
    assert torch.equal(add(x, z), x + z)
    if len(shape) == 2:
        assert torch.equal(add(x.T.contiguous().T, z), x + z) and torch.equal(add(x, z.T.contiguous().T), x + z)


def test_a_sum_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot add torch.float32 \[3\] to torch.float32 \[2, 3\]"):
        add(made(2, 3), made(3))
    with pytest.raises(ValueError, match=r"cannot add torch.bfloat16 \[3\] to torch.float32 \[3\]"):
        add(made(3), made(3).bfloat16())
