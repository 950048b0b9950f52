"""Masks over scores: the compiled loop and PyTorch's operators against a loop over the tokens, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unspool.kernels import masks
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.kernels.masks import mask_scores, unpacked

WAYS = [
    pytest.param("auto", marks=pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")),
    pytest.param("off"),
]
ODD = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, 3.4e38)


def given_scores(rows: int, vocab: int, stride: int) -> torch.Tensor:
    """Return scores with every odd number. --> [rows, vocab], `stride` numbers from row to row"""
    numbers = torch.randn(rows, stride, generator=torch.Generator().manual_seed(vocab))
    numbers.view(-1)[::3] = torch.tensor(ODD).repeat(-(-numbers.numel() // 3 // len(ODD)) + 1)[
        : len(numbers.view(-1)[::3])
    ]
    return numbers[:, :vocab]


def given_masks(rows: int, words: int, share: float) -> np.ndarray:
    """Return random masks with words of all ones and of all zeros. --> [rows, words] int32"""
    random = np.random.default_rng(rows * words)
    bits = random.random((rows, words, 32)) < share
    kinds = random.integers(0, 4, (rows, words, 1))
    bits = np.where(kinds == 0, True, np.where(kinds == 1, False, bits))
    return np.packbits(bits, axis=-1, bitorder="little").view(np.int32).reshape(rows, words)


def by_token(scores: torch.Tensor, words: np.ndarray) -> torch.Tensor:
    """Return masked scores, token by token."""
    found = scores.clone()
    for row, mask in enumerate(words.tolist()):
        for token in range(scores.shape[1]):
            if token // 32 >= len(mask) or not mask[token // 32] >> token % 32 & 1:
                found[row, token] = float("-inf")
    return found


def bits(scores: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers: NaN is equal to itself, and 0.0 differs from -0.0."""
    return scores.contiguous().view(torch.int32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 95, 96, 130, 1000])
@pytest.mark.parametrize("further", [-2, -1, 0, 1, 3])
@pytest.mark.parametrize("gap", [0, 5])
def test_a_mask_forbids_exactly_the_tokens_without_a_bit(
    way: str, vocab: int, further: int, gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask has `further` words more than the vocabulary needs, and rows of scores have a gap between them."""
    monkeypatch.setenv(VARIABLE, way)
    words = given_masks(3, max(1, -(-vocab // 32) + further), 0.5)
    scores = given_scores(3, vocab, vocab + gap)
    behind = torch.as_strided(scores, (2, gap), (vocab + gap, 1), vocab)  # the gaps
    before, expected = behind.clone(), by_token(scores, words)
    found = mask_scores(scores, words)
    assert found is scores or found.data_ptr() == scores.data_ptr()
    assert torch.equal(bits(scores), bits(expected))
    assert torch.equal(bits(behind), bits(before))
    assert unpacked(words, vocab).sum() == sum(
        each // 32 < words.shape[1] and words[row, each // 32] >> each % 32 & 1
        for row in range(3)
        for each in range(vocab)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_rows(way: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, way)
    monkeypatch.setattr(masks, "_SCORES_PER_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    words, scores = given_masks(37, 7, 0.9), given_scores(37, 210, 210)
    expected = by_token(scores, words)
    assert torch.equal(bits(mask_scores(scores, words)), bits(expected))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_other_dtypes_and_strides_are_masked_too(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, way)
    words = given_masks(4, 3, 0.5)
    scores = torch.randn(90, 4).to(dtype).t()  # one number of each row after the other
    expected = by_token(scores, words)
    assert torch.equal(mask_scores(scores, words), expected) and torch.equal(scores, expected)


def test_the_compiled_loop_runs_for_rows_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels() is None:
        pytest.skip(obstacle())
    monkeypatch.setattr(masks, "unpacked", None)  # the other way would fail
    scores = torch.randn(2, 64)
    assert torch.isinf(mask_scores(scores, np.zeros((2, 2), dtype=np.int32))).all()
