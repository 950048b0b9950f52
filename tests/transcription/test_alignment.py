"""Times of tokens: the warping path against every path, and the whole against transformers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from unspool.transcription.alignment import median_filter, time_warping, token_seconds


def cost(path: list[tuple[int, int]], costs: np.ndarray) -> float:
    return float(sum(costs[cell] for cell in path))


def all_paths(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    found = []
    for length in range(max(rows, columns), rows + columns):
        for steps in itertools.product([(1, 1), (1, 0), (0, 1)], repeat=length - 1):
            cells = [(0, 0)]
            for down, right in steps:
                cells.append((cells[-1][0] + down, cells[-1][1] + right))
            if cells[-1] == (rows - 1, columns - 1):
                found.append(cells)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_no_path_is_cheaper(seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=(3, 4))
    path = time_warping(costs)
    found = cost(list(zip(path.tokens.tolist(), path.positions.tolist(), strict=True)), costs)
    assert found == pytest.approx(min(cost(each, costs) for each in all_paths(3, 4)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (6, 20), (20, 6), (13, 13)])
@pytest.mark.parametrize("kind", ["random", "ties", "nan"])
def test_the_path_is_that_of_transformers(shape: tuple[int, int], kind: str) -> None:
    costs = np.random.default_rng(1).normal(size=shape)
    costs = {"random": costs, "ties": np.round(costs), "nan": np.full(shape, np.nan)}[kind]
    tokens, positions = _dynamic_time_warping(costs)
    path = time_warping(costs)
    assert path.tokens.tolist() == tokens.tolist() and path.positions.tolist() == positions.tolist()


@pytest.mark.parametrize("length", [2, 4, 15])
def test_the_median_filter_mirrors_edges(length: int) -> None:
    values = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0))
    assert median_filter(values, 7).equal(_median_filter(values, 7))


def test_tokens_without_weights_begin_at_zero() -> None:
    assert token_seconds(torch.empty(2, 0, 5), filter_width=3, seconds=0.02) == [0.0]
    assert token_seconds(torch.ones(2, 3, 0), filter_width=3, seconds=0.02) == [0.0] * 4
