"""Device-to-host transfer: batches the small tensors of a step into one copy."""

from __future__ import annotations

import torch

from unspool.processors.rows import on_host


class Transfer:
    """A small tensor in a pending transfer. rows: its numbers, row by row, after `DeviceToHost.send`."""

    __slots__ = ("rows",)

    rows: list[list[float]]


class DeviceToHost:
    """Small tensors that are copied together, because each wait for the device costs more than the copy itself."""

    def __init__(self) -> None:
        self._packed: list[tuple[Transfer, torch.Tensor]] = []

    def add(self, numbers: torch.Tensor) -> Transfer:
        """Add a tensor. numbers: [rows, columns], floats or token ids; ids arrive as floats, without rounding."""
        item = Transfer()
        if on_host(numbers):
            item.rows = numbers.tolist()
        else:
            self._packed.append((item, numbers))
        return item

    def send(self) -> None:
        """Copy all tensors and fill their `rows`."""
        if not self._packed:
            return
        # One float64 tensor promotes all others to float64, which holds ids and float32 exactly.
        parts = [numbers.flatten() for _, numbers in self._packed]
        flat: list[float] = torch.cat([parts[0].double(), *parts[1:]]).tolist()
        start = 0
        for item, numbers in self._packed:
            rows, columns = numbers.shape
            stop = start + rows * columns
            item.rows = [flat[at : at + columns] for at in range(start, stop, columns)] if columns else [[]] * rows
            start = stop
