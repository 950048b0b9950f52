"""DRY against a scan of the whole sequence, worked examples, breakers and range."""

from __future__ import annotations

import random
import time

import pytest
import torch

from tests.processors.support import applied, context, one, state_of
from unspool.errors import OptionError


def penalties(output: tuple[int, ...] = (), **request) -> dict[int, float]:
    result = one("dry", [0.0] * 10, output, **({"dry_multiplier": 0.8} | request))
    return {token: round(-score, 4) for token, score in enumerate(result) if score}


def test_worked_example_of_dry():
    options = {"dry_base": 1.75, "dry_allowed_length": 2}
    assert penalties(prompt=(1, 2, 3, 9, 1, 2), **options) == {3: 0.8}
    assert penalties(prompt=(0, 1, 2, 3, 9, 0, 1, 2), **options) == {3: 1.4}


def scanned(
    tokens: list[int], multiplier: float, base: float, allowed: int, breakers: tuple[tuple[int, ...], ...], window: int
) -> dict[int, float]:
    """The rule read aloud, in cubic time."""
    tokens = tokens[-window:] if window else tokens
    longest_suffix = len(tokens)
    for breaker in breakers:
        for end in range(len(breaker), len(tokens) + 1):
            if tuple(tokens[end - len(breaker) : end]) == breaker:
                longest_suffix = min(longest_suffix, len(tokens) - end)
    found: dict[int, int] = {}
    for following in range(1, len(tokens)):
        length = 0
        while length < min(following, longest_suffix) and tokens[following - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= allowed and (tokens[following],) not in breakers:
            found[tokens[following]] = max(found.get(tokens[following], 0), length)
    return {token: multiplier * base ** (length - allowed) for token, length in found.items()}


@pytest.mark.parametrize("seed", range(60))
def test_dry_equals_a_scan_of_the_whole_sequence(seed: int):
    rng = random.Random(seed)
    vocab, window = rng.choice([1, 2, 4]), rng.choice([0, 3, 10])
    tokens = [rng.randrange(vocab) for _ in range(rng.randint(1, 40))]
    breakers = tuple(tuple(rng.randrange(4) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(0, 2)))
    multiplier, base, allowed = rng.uniform(0.1, 2), rng.uniform(1, 2), rng.randint(1, 4)
    cut = rng.randint(1, len(tokens))
    request = context(
        tokens[:cut],
        vocab_size=10,
        dry_multiplier=multiplier,
        dry_base=base,
        dry_allowed_length=allowed,
        dry_sequence_breakers=breakers,
        dry_range=window,
    )
    result = applied("dry", [state_of("dry", request, tokens[cut:])], torch.zeros(1, 10))[0]
    expected = torch.zeros(10)
    for token, penalty in scanned(tokens, multiplier, base, allowed, breakers, window).items():
        expected[token] -= penalty
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("breakers", "expected"),
    [
        ((), {3: 1.4}),
        ((1,), {}),
        ((2,), {}),
        ((0,), {3: 0.8}),
        ((3,), {}),
        (((0, 1),), {}),
        (((9, 0),), {3: 0.8}),
        (((8, 0),), {3: 1.4}),
        (((1, 3),), {3: 1.4}),
    ],
)
def test_no_repeat_reaches_across_a_breaker(breakers: tuple, expected: dict[int, float]):
    tokens = (0, 1, 2, 3, 9, 0, 1, 2)
    assert penalties(prompt=tokens, dry_sequence_breakers=breakers) == expected
    assert penalties(tokens[3:], prompt=tokens[:3], dry_sequence_breakers=breakers) == expected


@pytest.mark.parametrize(("window", "expected"), [(0, {3: 1.4}), (8, {3: 1.4}), (7, {3: 0.8}), (6, {}), (1, {})])
def test_only_the_last_tokens_in_range_count(window: int, expected: dict[int, float]):
    assert penalties(prompt=(0, 1, 2, 3, 9, 0, 1, 2), dry_range=window) == expected


def test_text_among_the_breakers_is_refused():
    with pytest.raises(OptionError, match="dry_sequence_breakers"):
        state_of("dry", context(dry_multiplier=1.0, dry_sequence_breakers=("\n",)))


def test_a_long_loop_stays_finite():
    result = one("dry", [0.0, 0.0], prompt=(0,) * 3000, dry_multiplier=1.0, dry_base=4.0)
    assert result == [pytest.approx(-1e30), 0.0]


def test_a_step_after_a_long_prompt_does_not_scan_it_in_python():
    """A thousand steps at 20,000 tokens: a Python scan would take minutes, the vector operation some 20 ms."""
    rng = random.Random(0)
    state = state_of("dry", context([rng.randrange(5000) for _ in range(20_000)], vocab_size=5000, dry_multiplier=1.0))
    begun = time.perf_counter()
    for _ in range(1000):
        state.repeats.add(rng.randrange(5000), state.window)
    assert time.perf_counter() - begun < 5
