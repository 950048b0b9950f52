"""Whether two ways of running a model agree: the one measure behind all trials of a runtime.

The measure is relative to the spread of the logits, for their mean says nothing. Rounding in half precision moves a row
by about a hundredth of its spread. A missing position, a wrong mask or a missing layer moves some row by a
tenth or more.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from unspool.runtimes.weights.quantized_info import quantized_linears

_EXACT: Final = 1e-3
_ROUNDED: Final = 0.05
_QUANTISED: Final = 0.1


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest root mean square difference of a row, divided by the standard deviation of its reference.

    Args:
        found, reference: [..., vocab] on one device. Infinite entries of the reference must be the same in `found`.

    Returns:
        At least 0; inf if shapes or infinite entries differ.
    """
    if found.shape != reference.shape or not torch.equal(found.isfinite(), reference.isfinite()):
        return float("inf")
    rows, expected = found.flatten(0, -2).double(), reference.flatten(0, -2).double()
    return max((_row_distance(*pair) for pair in zip(rows, expected, strict=True)), default=0.0)


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
        return _QUANTISED
    return _EXACT if next(model.parameters()).dtype in (torch.float32, torch.float64) else _ROUNDED
