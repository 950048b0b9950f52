"""Alignment of tokens with audio: dynamic time warping over cross-attention weights.

Owns: the computation. Does not know: how the weights were computed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

_BOTH: Final = 0
_TOKEN: Final = 1
_POSITION: Final = 2


def token_seconds(weights: torch.Tensor, *, filter_width: int, seconds: float) -> list[float]:
    """Return the start of each token in the audio.

    The last token of an output is never fed, so it gets the time of the token before.

    Args:
        weights: [heads, tokens, positions], one row for each token but the last.
        filter_width: of the median filter, in positions, odd.
        seconds: per position.

    Source: transformers, `WhisperGenerationMixin._extract_token_timestamps`.
    """
    if not weights.numel():
        return [0.0] * (weights.shape[1] + 1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smooth = median_filter((weights - mean) / std, filter_width).mean(0)
    path = time_warping(-smooth.double().numpy())
    begins = np.diff(path.tokens, prepend=-1).astype(bool)
    times: list[float] = (path.positions[begins] * seconds).tolist()
    return [*times, times[-1]]


def median_filter(values: torch.Tensor, width: int) -> torch.Tensor:
    """Return the median of the `width` values around each value of the last dimension; edges are mirrored."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    mirrored = torch.nn.functional.pad(values, (half, half), mode="reflect")
    return mirrored.unfold(-1, width, 1).median(-1).values


class WarpingPath(NamedTuple):
    """A monotone path through a matrix: its rows (tokens) and columns (positions), step by step."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]


def time_warping(costs: NDArray[np.float64]) -> WarpingPath:
    """Return the cheapest monotone path from the first to the last cell.

    Args:
        costs: [tokens, positions]

    Source: Sakoe and Chiba 1978, Dynamic programming algorithm optimization for spoken word recognition.
    """
    num_tokens, num_positions = costs.shape
    total = np.full((num_tokens + 1, num_positions + 1), np.inf, dtype=np.float32)
    step = np.full(total.shape, _POSITION, dtype=np.int8)
    step[:, 0] = _TOKEN
    total[0, 0] = 0
    for diagonal in range(2, num_tokens + num_positions + 1):
        # All cells of an anti-diagonal depend on the two before only.
        rows = np.arange(max(1, diagonal - num_positions), min(num_tokens, diagonal - 1) + 1)
        columns = diagonal - rows
        both, token, position = total[rows - 1, columns - 1], total[rows - 1, columns], total[rows, columns - 1]
        by_both, by_token = (both < token) & (both < position), (token < both) & (token < position)
        step[rows, columns] = np.where(by_both, _BOTH, np.where(by_token, _TOKEN, _POSITION))
        best = np.where(by_both, both, np.where(by_token, token, position))
        total[rows, columns] = costs[rows - 1, columns - 1] + best
    return _backtrace(step)


def _backtrace(step: NDArray[np.int8]) -> WarpingPath:
    """Return the path that the steps describe. step: [tokens + 1, positions + 1]"""
    row, column = step.shape[0] - 1, step.shape[1] - 1
    cells = []
    step[0, :] = _POSITION
    while row > 0 or column > 0:
        cells.append((row - 1, column - 1))
        kind = step[row, column]
        row -= kind != _POSITION
        column -= kind != _TOKEN
    tokens, positions = np.array(cells[::-1], dtype=np.int64).T
    return WarpingPath(tokens, positions)
