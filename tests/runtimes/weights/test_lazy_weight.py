"""The weight of a packed or quantized layer: type and shape cost nothing, values are those of the layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unspool.runtimes.weights.lazy_weight import LazyWeight


class Source:
    """Counts how often the values of a weight were computed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.values, self.reads = torch.arange(6.0).reshape(2, 3).to(dtype), 0

    def __call__(self) -> torch.Tensor:
        self.reads += 1
        return self.values

    def weight(self) -> LazyWeight:
        return LazyWeight(self.values.shape, self.values.dtype, self)


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


def test_writing_is_refused() -> None:
    source = Source(torch.float32)
    for write in (lambda: source.weight().mul_(2), lambda: source.weight().copy_(torch.ones(2, 3))):
        with pytest.raises(TypeError, match="change the plain model"), torch.no_grad():
            write()
    assert source.values.sum() == 15
