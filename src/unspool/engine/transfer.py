"""Brings what a step has found over from the device, all of it at once."""

from __future__ import annotations

import torch

from unspool.processors.rows import on_host


class Transfer:
    """A small tensor on its way. rows: its numbers, row by row, once the parcel has arrived."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[list[float]] = []


class DeviceToHost:
    """Small tensors that travel together: a wait for the device costs more than anything that is brought over."""

    def __init__(self) -> None:
        self._packed: list[tuple[Transfer, torch.Tensor]] = []

    def add(self, numbers: torch.Tensor) -> Transfer:
        """Pack a tensor. numbers: [rows, columns], floats or ids; ids come over exactly, as floats."""
        item = Transfer()
        self._packed.append((item, numbers))
        return item

    def send(self) -> None:
        """Fill all items, in one transfer."""
        if all(on_host(numbers) for _, numbers in self._packed):
            for item, numbers in self._packed:
                item.rows = numbers.tolist()
            return
        # Next to one float64 tensor all others are turned into that, which holds ids and float32 exactly.
        parts = [numbers.flatten() for _, numbers in self._packed]
        flat: list[float] = torch.cat([parts[0].double(), *parts[1:]]).tolist()
        start = 0
        for item, numbers in self._packed:
            rows, columns = numbers.shape
            stop = start + rows * columns
            item.rows = [flat[at : at + columns] for at in range(start, stop, columns)] if columns else [[]] * rows
            start = stop
