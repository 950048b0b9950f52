"""Probes: compare rows of logits with the model's own forward before a backend is used.

The measure is relative to the spread of the logits. Rounding in half precision changes a row by about a hundredth of
its spread. A missing position, a wrong mask or a missing layer changes some row by a tenth or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import nn

from unspool.runtimes.model_info import num_hidden_layers
from unspool.runtimes.quantized.info import quantized_linears
from unspool.runtimes.wrap.hooks import HeadHook, LayerSearch

_EXACT: Final = 1e-3
_ROUNDED: Final = 0.05
_QUANTIZED: Final = 0.1

Output = TypeVar("Output")


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest root mean square difference of a row, divided by the standard deviation of its reference.

    Args:
        found, reference: [..., vocab] on one device. Infinite entries of the reference must be the same in `found`.

    Returns:
        At least 0; inf if shapes or infinite entries differ.
    """
    if found.shape != reference.shape:
        return float("inf")
    rows, expected = found.flatten(0, -2).double(), reference.flatten(0, -2).double()
    if not len(rows):
        return 0.0
    spread = expected.std(-1, correction=0)
    largest = float(((rows - expected).square().mean(-1).sqrt() / spread).max())
    if math.isfinite(largest):  # then all entries are finite, and no spread is 0
        return largest
    if not torch.equal(found.isfinite(), reference.isfinite()):
        return float("inf")
    return max(_row_distance(*pair) for pair in zip(rows, expected, strict=True))


def _row_distance(row: torch.Tensor, reference: torch.Tensor) -> float:
    finite = reference.isfinite()
    row, reference = row[finite], reference[finite]
    if not len(row):
        return 0.0
    spread = float(reference.std(correction=0)) or float(reference.abs().max()) or 1.0
    return float((row - reference).square().mean().sqrt()) / spread


def allowed_distance(model: nn.Module) -> float:
    """Return the largest `distance` that rounding explains, by the model's dtype and quantization."""
    if quantized_linears(model):
        return _QUANTIZED
    return _EXACT if next(model.parameters()).dtype in (torch.float32, torch.float64) else _ROUNDED


def agrees(module: nn.Module, found: torch.Tensor, reference: torch.Tensor) -> bool:
    """Return True if rows of the model differ from its own ones by rounding at most. Rows: [..., vocab]."""
    return distance(found, reference.to(found.device)) <= allowed_distance(module)


def difference(module: nn.Module, found: torch.Tensor, reference: torch.Tensor, backend: str) -> str:
    """Return how a backend's rows differ from the model's own, in words; "" if `agrees`."""
    if agrees(module, found, reference):
        return ""
    return f"gives other results on {backend} ({distance(found, reference.to(found.device)):.2g} of their spread apart)"


def failure(module: nn.Module, backend: str, error: Exception) -> str:
    """Return the reason of a model that raised an error on a backend, in words; see `difference`."""
    return f"{type(module).__name__} does not run{backend and f' on {backend}'}: {type(error).__name__}: {error}"


def probe_tokens(module: Any, count: int, parts: int) -> list[int]:
    """Return `count` token ids, spread over the vocabulary in steps of a `parts`-th of it."""
    num_embeddings = int(module.get_input_embeddings().weight.shape[0])
    return [num_embeddings * part // parts for part in range(1, count + 1)]


class Readable(NamedTuple):
    """The states of a model that can be read during a pass.

    reads_last: True if the input of its head for the last position can be read. reads_head: True if that can be read
    for every position. layers: the decoder layers, if the head can read the states between them; else None.
    """

    reads_last: bool = False
    reads_head: bool = False
    layers: tuple[nn.Module, ...] | None = None


def observe(module: Any, num_rows: int, call: Callable[[], Output]) -> tuple[Output, Readable]:
    """Run a call of the module over `num_rows` tokens in all, and find the states that can be read."""
    head_layer: nn.Module | None = module.get_output_embeddings()
    search = LayerSearch(module, num_hidden_layers(module))
    with HeadHook(nn.Identity() if head_layer is None else head_layer) as head, search:
        output = call()
    if head.states is None:
        return output, Readable()
    reads_all = len(head.states) == num_rows
    return output, Readable(True, reads_all, search.found(head.states.shape[-1]) if reads_all else None)
