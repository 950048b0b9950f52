"""The weight of a packed or quantized layer: type and shape cost nothing, values are those of the layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unspool.runtimes.weights.lazy_weight import LazyWeight


class Source:
    """Counts how often the values of a weight, and some of its rows, were computed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.values, self.reads, self.row_reads = torch.arange(6.0).reshape(2, 3).to(dtype), 0, 0

    def __call__(self) -> torch.Tensor:
        self.reads += 1
        return self.values

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        self.row_reads += 1
        return self.values[ids]

    def weight(self, *, by_row: bool = False) -> LazyWeight:
        return LazyWeight(self.values.shape, self.values.dtype, self, self.rows if by_row else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_shape_and_device_are_known_without_values(dtype: torch.dtype) -> None:
    source = Source(dtype)
    weight = source.weight()
    assert (weight.dtype, weight.shape, weight.device.type, weight.ndim) == (dtype, (2, 3), "cpu", 2)
    assert torch.zeros(1).to(weight.dtype).dtype == dtype
    assert not weight.requires_grad and source.reads == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_operations_read_the_computed_values(mode: type) -> None:
    source = Source(torch.float32)
    weight = source.weight()
    with mode():
        assert torch.equal(weight, source.values)
        assert torch.equal(F.linear(torch.eye(3), weight), source.values.T)
        assert torch.equal(weight[1:], source.values[1:])
        assert torch.equal(torch.cat([weight, weight]), torch.cat([source.values] * 2))
    assert type(weight.clone()) is torch.Tensor


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("by_row", [True, False])
def test_embeddings_and_single_rows_are_read_alone(mode: type, by_row: bool) -> None:
    """Gemma 4 reads the row of its padding token in each pass."""
    source = Source(torch.float32)
    weight, ids = source.weight(by_row=by_row), torch.tensor([[1, 0, 1]])
    with mode():
        assert torch.equal(F.embedding(ids, weight, 0), source.values[ids])
        for row in (0, 1, -1, -2):
            assert torch.equal(weight[row, :], source.values[row])
        assert (source.reads, source.row_reads) == ((0, 5) if by_row else (5, 0))
        assert torch.equal(weight[:, 1], source.values[:, 1])
        assert torch.equal(F.linear(torch.eye(3), weight), source.values.T)
    assert source.row_reads == (5 if by_row else 0)


@pytest.mark.parametrize("row", [2, -3])
def test_a_row_outside_is_refused(row: int) -> None:
    for by_row in (True, False):
        with pytest.raises(IndexError):
            Source(torch.float32).weight(by_row=by_row)[row]


@pytest.mark.parametrize("attempt", [copy.deepcopy, pickle.dumps])
def test_copies_are_refused(attempt: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        attempt(Source(torch.float32).weight())


def test_writing_is_refused() -> None:
    source = Source(torch.float32)
    for write in (lambda: source.weight().mul_(2), lambda: source.weight().copy_(torch.ones(2, 3))):
        with pytest.raises(TypeError, match="change the plain model"), torch.no_grad():
            write()
    assert source.values.sum() == 15
