"""Command buffers: recorded calls run again, on other memory, with the same results."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.kernels.test_packed import made
from unspool.kernels import commands
from unspool.kernels.commands import CommandBuffer, recording
from unspool.kernels.gate import gate
from unspool.kernels.layer_norm import LayerNorm, layer_norm
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.packed import PackedWeight, linear
from unspool.kernels.rows import Norm, rms_norm, rotate

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")


class Calls:
    """A call of each kernel but attention, from x [3, 64] to y [3, 64]."""

    def __init__(self) -> None:
        self.weight, self.down = PackedWeight(made(96, 64)), PackedWeight(made(64, 96, seed=1), bias=made(64, seed=2))
        self.rms = Norm(made(64, seed=3), 1e-5, torch.float32, rounds=False, lanes=8)
        self.norm = LayerNorm(made(64, seed=4), made(64, seed=5), 64, 1e-5, torch.float32)
        self.cos, self.sin = made(2, 1, 1, 3, 32, seed=6)

    def run(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the results of all calls."""
        normed = rms_norm(x, self.rms)
        wide = linear(normed, self.weight)
        gated = gate(wide, "silu", wide)
        y = linear(gated, self.down, x)
        turned = rotate(y.view(1, 3, 2, 32).transpose(1, 2), self.cos, self.sin, 16)
        return [normed, wide, gated, y, turned, layer_norm(turned.transpose(1, 2).reshape(3, 64), self.norm)]


def recorded(calls: Calls, x: torch.Tensor) -> tuple[CommandBuffer, list[torch.Tensor]]:
    with recording() as found:
        results = calls.run(x)
    return found[0], results


def test_recorded_calls_run_again_with_other_numbers() -> None:
    calls, x = Calls(), made(3, 64, seed=8)
    expected = calls.run(x + 1)
    buffer, results = recorded(calls, x)
    assert torch.equal(results[-1], calls.run(x)[-1]), "the calls also run while they are recorded"
    x += 1
    buffer.run([0], None)
    assert all(map(torch.equal, results, expected))


def test_recorded_calls_run_on_other_memory() -> None:
    calls, x = Calls(), made(3, 64, seed=8)
    buffer, results = recorded(calls, x)
    addresses = buffer.addresses()
    assert len(addresses) == 6
    moved, other = [torch.zeros_like(each) for each in results], x + 1
    new = {each.data_ptr(): index for index, each in enumerate((x, *results), 1)}
    bases = [0, *(each.data_ptr() for each in (other, *moved))]
    buffer.move([[(new[address], 0) if address in new else (0, address) for address in own] for own in addresses])
    before = [each.clone() for each in results]
    buffer.run(bases, None)
    assert all(map(torch.equal, moved, calls.run(other))) and all(map(torch.equal, results, before))


def test_calls_of_other_threads_are_not_recorded() -> None:
    calls, x = Calls(), made(3, 64)
    with recording() as found:
        calls.run(x)
        thread = threading.Thread(target=calls.run, args=(x,))
        thread.start()
        thread.join()
    calls.run(x)
    assert len(found[0].addresses()) == 6


def test_too_many_calls_give_no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_MOST", 5)
    calls, x = Calls(), made(3, 64)
    expected = calls.run(x)[-1]
    with recording() as found:
        assert torch.equal(calls.run(x)[-1], expected)
    assert not found


def test_recording_ends_with_an_error() -> None:
    calls, x = Calls(), made(3, 64)
    with pytest.raises(ValueError, match="a norm of"), recording():
        layer_norm(made(3, 63), calls.norm)
    buffer, _ = recorded(calls, x)
    assert len(buffer.addresses()) == 6


def test_a_buffer_without_calls() -> None:
    with recording() as found:
        pass
    found[0].run([0], None)
    assert found[0].addresses() == []
