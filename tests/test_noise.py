"""Noise is a pure function of its name, and it is the noise it claims to be."""

from __future__ import annotations

import math

import torch

from unspool.noise import NoiseKey, gumbel, gumbel_parts, key_bits, prompt_key, streams, uniform

TOKENS = torch.arange(20_000)


def test_the_same_name_gives_the_same_number_wherever_it_stands() -> None:
    keys = [NoiseKey(seed, 0, 0, 5) for seed in range(4)]
    together = gumbel(keys, TOKENS)
    for index, key in enumerate(keys):
        assert torch.equal(gumbel([key], TOKENS)[0], together[index])
    some = torch.tensor([[17, 3, 19_999]])
    assert torch.equal(gumbel([keys[2]], some)[0], together[2][some[0]])


def test_numbers_are_pinned_so_that_recorded_seeds_stay_good() -> None:
    assert key_bits(NoiseKey(0, 0, 0, 0)) == 0x78AE5A9A6B5FD45E
    first = gumbel([NoiseKey(42, prompt_key([1, 2, 3]), 1, 7)], torch.tensor([0, 1, 2]))[0]
    assert [round(x, 4) for x in first.tolist()] == [-0.0653, 1.8302, -0.1707]


def test_every_field_of_the_name_matters() -> None:
    base = NoiseKey(1, 0, 1, 1, 1)
    others = [
        NoiseKey(1, 1, 1, 1, 1),
        NoiseKey(1, prompt_key([1]), 1, 1, 1),
        NoiseKey(2, 0, 1, 1, 1),
        NoiseKey(1, 0, 2, 1, 1),
        NoiseKey(1, 0, 1, 2, 1),
        NoiseKey(1, 0, 1, 1, 2),
        NoiseKey(1, 0, 1, 1, "my_noise_a"),
        NoiseKey(1, 0, 1, 1, "my_noise_b"),
        NoiseKey(-1, 0, 1, 1, 1),
        NoiseKey(1 + 2**40, 0, 1, 1, 1),
    ]
    assert len({key_bits(key) for key in [base, *others]}) == len(others) + 1
    noise = gumbel([base, *others], TOKENS)
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    # Standard deviation of a correlation of 20,000 independent pairs is 0.0071; 55 pairs beyond 5.6 of them: 1e-6.
    assert correlation.abs().max() < 0.04


def test_gumbel_noise_has_its_mean_variance_and_distribution() -> None:
    noise = gumbel([NoiseKey(seed, 0, 0, seed) for seed in range(50)], TOKENS).flatten()  # a million numbers
    # Mean: sd of the estimate 0.0013; variance: sd about 0.004 (kurtosis 5.4). Six of each: false alarm below 1e-8.
    assert abs(noise.mean().item() - 0.5772) < 0.008
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.03
    shares = torch.exp(-torch.exp(-noise))
    counts = torch.histc(shares, bins=100, min=0, max=1)
    # Chi-square with 99 degrees of freedom: above 180 with probability 1.2e-6.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 180


def test_uniform_stays_inside_the_open_interval_and_keeps_small_numbers() -> None:
    numbers = torch.cat([uniform([NoiseKey(seed, 0, 0, p) for p in range(5000)]) for seed in range(4)])
    assert numbers.min() > 0 and numbers.max() < 1
    # The least of 20,000 numbers lies above 1e-3 with probability 2e-9.
    assert numbers.min() < 1e-3


def test_noise_in_parts_is_the_same_noise() -> None:
    keys = [NoiseKey(seed, 0, 0, 5) for seed in range(5)]
    expected = gumbel(keys, torch.arange(1003))
    for step in (1, 2, 5, 9):
        parts = torch.cat([part.clone() for part in gumbel_parts(streams(keys), 1003, step)])
        assert torch.equal(parts, expected)


def test_numbers_are_those_of_the_definition() -> None:
    """The formulas of the module's docstring, in Python's own integers."""
    keys = [NoiseKey(seed, 0, 0, 3) for seed in range(3000)]

    def mixed(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return (value ^ (value >> 31)) % 2**63

    expected = torch.tensor([mixed(key_bits(key)) for key in keys]).float() * 2.0**-63
    assert torch.equal(uniform(keys), expected)
