"""Stochastic beam search draws whole outputs without replacement: chances against exact enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.toys import END, TABLE, drain, mixing_toy, request, results, run_alone, toy
from unspool.engine import Engine
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies.stochastic_beam import StochasticBeamSearch, conditioned
from unspool.types import Committed, Output

Tokens = tuple[int, ...]


def options(num_beams: int, **more: Any) -> dict[str, Any]:
    return {"strategy": "stochastic_beam", "num_beams": num_beams, "num_return_sequences": num_beams, **more}


def outputs(make: Callable[[], ToyRuntime], *prompt: int, seed: int = 0, **given: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, seed=seed, **given))
    assert isinstance(found, tuple), found
    return found


def many(make: Callable[[], ToyRuntime], prompt: Sequence[int], draws: int, **given: Any) -> list[tuple[Tokens, ...]]:
    """Return the outputs of one request a seed, all of them in one engine."""
    engine, base = Engine(make()), request(prompt, **given)
    numbers = [engine.submit(replace(base, seed=seed)) for seed in range(draws)]
    found = results(drain(engine))
    drawn = []
    for number in numbers:
        outcome = found[number]
        assert isinstance(outcome, tuple), outcome
        drawn.append(tuple(output.token_ids for output in outcome))
    return drawn


def three_tokens() -> ToyRuntime:
    return ToyRuntime(lambda tokens: [0.5, 0.3, 0.2], 3)


def test_stochastic_beam_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [math.log(p) + noise for p, noise in zip((0.5, 0.3, 0.2), (0.2, 1.5, -0.4), strict=True)]
    assert own == pytest.approx([-0.493, 0.296, -2.009], abs=1e-3)
    assert conditioned(sorted(own, reverse=True), 0.0) == pytest.approx([0, -0.638, -2.043], abs=1e-3)
    noise = torch.tensor([0.2, 1.5, -0.4])
    monkeypatch.setattr("unspool.engine.sampler.gumbel", lambda keys, tokens: noise[tokens].expand(len(keys), -1))
    found = outputs(three_tokens, 0, **options(2, max_new_tokens=1))
    assert [output.token_ids for output in found] == [(1,), (0,)]
    assert [output.score for output in found] == pytest.approx([math.log(0.3), math.log(0.5)], abs=1e-6)


@pytest.mark.parametrize("greatest", [-900.0, -5.0, 0.0, 3.0, 200.0])
@pytest.mark.parametrize("values", [[1.0, 0.5, -2.0], [-3.0, -3.0, -3.00001], [40.0, -40.0, -800.0]])
def test_moved_values_keep_their_order_and_begin_at_the_greatest(values: list[float], greatest: float) -> None:
    found = conditioned(values, greatest)
    assert found[0] == greatest and found == sorted(found, reverse=True)
    assert all(math.isfinite(each) for each in found)


def test_moved_values_are_those_of_the_equation() -> None:
    for values, greatest in [([2.0, 1.0, -1.5], 0.5), ([-0.2, -0.3, -4.0], -1.0), ([0.0, -1e-9, -6.0], 2.0)]:
        exact = [
            -math.log(math.exp(-greatest) + (math.exp(-value) - math.exp(-values[0])))
            for value in values
        ]  # fmt: skip
        assert conditioned(values, greatest) == pytest.approx(exact, abs=1e-9)


# --- chances --------------------------------------------------------------------------------------------------------


def all_outputs(first: int, longest: int) -> dict[Tokens, float]:
    """Return every output of the toy table behind `first`, ended or of the longest length, with its probability."""
    found = {}
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(4), repeat=length):
            if END in tokens[:-1] or (length < longest and tokens[-1] != END):
                continue
            p = math.prod(TABLE[a][b] for a, b in itertools.pairwise((first, *tokens)))
            if p > 0:
                found[tokens] = p
    assert math.fsum(found.values()) == pytest.approx(1)
    return found


def successive(exact: dict[Tokens, float], count: int) -> dict[tuple[Tokens, ...], float]:
    """Return the chance of each ordered draw of `count` outputs without replacement."""
    found = {}
    for drawn in itertools.permutations(exact, count):
        left, chance = 1.0, 1.0
        for tokens in drawn:
            chance *= exact[tokens] / left
            left -= exact[tokens]
        found[drawn] = chance
    return found


def statistic(counts: Counter[Any], chances: dict[Any, float], draws: int) -> tuple[float, int]:
    """Return chi-square and its degrees of freedom; what is expected fewer than five times is one cell together."""
    assert set(counts) <= set(chances)
    common = [key for key, chance in chances.items() if draws * chance >= 5]
    cells = [(counts[key], draws * chances[key]) for key in common]
    rest = draws - sum(count for count, _ in cells), draws - sum(expected for _, expected in cells)
    cells += [rest] if rest[1] > 1e-6 * draws else []
    return sum((count - expected) ** 2 / expected for count, expected in cells), len(cells) - 1


def limit(freedom: int) -> float:
    """Return what chi-square exceeds with probability 1e-6 (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.7534 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("first", "longest", "num_beams"), [(2, 2, 2), (0, 3, 2), (2, 3, 4)])
def test_ordered_draws_have_the_chances_of_drawing_without_replacement(
    first: int, longest: int, num_beams: int
) -> None:
    draws = 2000
    exact = all_outputs(first, longest)
    found = many(toy, (first,), draws, **options(num_beams, max_new_tokens=longest))
    for count in range(1, min(num_beams, 3) + 1):
        chances = successive(exact, count)
        assert math.fsum(chances.values()) == pytest.approx(1)
        value, freedom = statistic(Counter(drawn[:count] for drawn in found), chances, draws)
        assert value < limit(freedom)
    every = Counter(tokens for drawn in found for tokens in drawn)
    inclusion = inclusion_chances(exact, num_beams)
    for tokens, chance in inclusion.items():
        # Six standard deviations and one: false alarm below 1e-8 for each output.
        assert abs(every[tokens] - draws * chance) <= 6 * math.sqrt(draws * chance * (1 - chance)) + 1


def inclusion_chances(exact: dict[Tokens, float], count: int) -> dict[Tokens, float]:
    """Return the chance of each output to be among those drawn, by the order in which exponential clocks ring."""
    names = list(exact)

    def drawn_sets(left: tuple[int, ...], mass: float, still: int) -> dict[int, float]:
        if not still:
            return {}
        found: dict[int, float] = dict.fromkeys(left, 0.0)
        for index in left:
            chance = exact[names[index]] / mass
            found[index] += chance
            rest = tuple(each for each in left if each != index)
            for each, then in drawn_sets(rest, mass - exact[names[index]], still - 1).items():
                found[each] += chance * then
        return found

    return {names[index]: chance for index, chance in drawn_sets(tuple(range(len(names))), 1.0, count).items()}


def test_truncated_distributions_are_drawn_from_as_they_are() -> None:
    """With a temperature the chances are those of the processed distribution, renormalized, and so is the score."""
    table = {token: [p**2 / sum(q**2 for q in row) for p in row] for token, row in enumerate(TABLE.values())}
    exact = {(a, b): table[2][a] * table[a][b] for a in range(3) for b in range(4) if table[2][a] * table[a][b] > 0}
    exact[(END,)] = table[2][END]
    draws, given = 2000, options(2, max_new_tokens=2, temperature=0.5)
    found = many(toy, (2,), draws, **given)
    value, freedom = statistic(Counter(found), successive(exact, 2), draws)
    assert value < limit(freedom)
    for output in outputs(toy, 2, seed=3, **given):
        assert output.score == pytest.approx(math.log(exact[output.token_ids]), abs=1e-5)


# --- what comes out -------------------------------------------------------------------------------------------------


def test_the_first_output_is_the_one_that_sampling_draws() -> None:
    """A prefix's best continuation keeps its value, so the first output is one sample, under the noise of sampling."""
    for seed in range(30):
        sampled = outputs(mixing_toy, 1, seed=seed, do_sample=True, temperature=0.8, max_new_tokens=7)[0]
        for num_beams in (2, 5):
            given = options(num_beams, temperature=0.8, max_new_tokens=7)
            assert outputs(mixing_toy, 1, seed=seed, **given)[0].token_ids == sampled.token_ids


def test_one_beam_is_plain_sampling() -> None:
    """The option table wants two beams at least, so the strategy is put in place of sampling by hand."""
    for seed in range(20):
        sampling = request([2], seed=seed, do_sample=True, top_p=0.9, max_new_tokens=9)
        sampled = run_alone(lambda: mixing_toy(7), sampling)
        alone = run_alone(lambda: mixing_toy(7), replace(sampling, strategy=StochasticBeamSearch()))
        assert isinstance(sampled, tuple) and isinstance(alone, tuple)
        assert [output.token_ids for output in alone] == [output.token_ids for output in sampled]


def test_all_outputs_differ_and_carry_their_log_probability() -> None:
    ended = 0
    for seed in range(20):
        found = outputs(lambda: mixing_toy(7), 2, seed=seed, **options(6, max_new_tokens=8))
        assert len({output.token_ids for output in found}) == 6
        for output in found:
            assert output.score == pytest.approx(sum(output.logprobs), abs=1e-4)
        ended += len({output.finish_reason for output in found}) > 1
    assert ended  # finished and longer outputs stood side by side


def test_when_there_are_fewer_outputs_than_beams_each_comes_once() -> None:
    exact = all_outputs(2, 2)
    found = outputs(toy, 2, seed=1, **options(40, max_new_tokens=2))
    assert {output.token_ids for output in found} == set(exact) and len(found) == len(exact)


def test_fewer_returned_ones_are_the_first_of_all() -> None:
    for seed in range(10):
        whole = outputs(lambda: mixing_toy(9), 3, seed=seed, **options(5, max_new_tokens=9))
        given = options(5, max_new_tokens=9) | {"num_return_sequences": 2}
        assert outputs(lambda: mixing_toy(9), 3, seed=seed, **given) == whole[:2]


def test_a_forward_a_token_for_all_beams_together() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    number = engine.submit(request([1, 2], **options(5, max_new_tokens=8)))
    found = results(drain(engine))[number]
    assert isinstance(found, tuple)
    assert len(runtime.passes) == max(len(output.token_ids) for output in found)
    assert all(len(each) <= 5 for each in runtime.passes) and not runtime.cached


def test_the_streamed_tokens_are_the_final_ones_and_the_first_output_streams_at_once() -> None:
    early = Counter[int]()
    for seed in range(25):
        engine = Engine(mixing_toy(7))
        number = engine.submit(request([2], seed=seed, **options(4, max_new_tokens=10)))
        events = drain(engine)
        found = results(events)[number]
        assert isinstance(found, tuple)
        for index, output in enumerate(found):
            pieces = [each for each in events if isinstance(each, Committed) and each.output == index]
            assert sum((piece.token_ids for piece in pieces), ()) == output.token_ids
            assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [output.finish_reason]
            early[index] += len(pieces) > 1
            if index == 0:
                assert {len(piece.token_ids) for piece in pieces} == {1}
    assert early[0] > 15 and early[1] > 0


def test_a_request_in_company_draws_what_it_draws_alone() -> None:
    engine = Engine(mixing_toy())
    wanted = [request([p], seed=p, **options(1 + p, max_new_tokens=4 + p)) for p in range(1, 6)]
    numbers = [engine.submit(each) for each in reversed(wanted)]
    together = results(drain(engine))
    assert [together[number] for number in reversed(numbers)] == [run_alone(mixing_toy, each) for each in wanted]
