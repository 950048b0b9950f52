"""Brute force over small languages: sampling reaches exactly their outputs, and a full beam search finds the best."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.grammars.toys import END, LETTERS, probability_of, request, sequences, texts_of
from tests.sampling import sampled
from tests.toys import drain, results
from unspool.engine import Engine
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Output

# pattern, characters, longest text to try, token limit
LANGUAGES = [
    ("(ab|a)(c|bcd)?", "abcd", 6, 6),
    ("a{1,3}b?", "ab", 5, 5),
    ("(abc|ab|a)-(c|bc)", "abc-", 7, 4),
    ("(a|b)*c", "abc", 9, 4),
    ("[ab]{2}(-[ab]{2})?", "ab-", 6, 6),
]
VOCAB = len(LETTERS)


def weights(tokens: tuple[int, ...]) -> list[float]:
    """Return probabilities that depend on all tokens so far; every token has some."""
    state = 7
    for token in tokens:
        state = (state * 31 + token * 17 + 3) % 10007
    row = [1.0 + (state * (index + 1) * 7919) % 23 for index in range(VOCAB)]
    return [value / sum(row) for value in row]


def model() -> ToyRuntime:
    return ToyRuntime(weights, VOCAB, eos_token_ids=(LETTERS.index(END),))


def outputs_of(**options: object) -> tuple[Output, ...]:
    engine = Engine(model())
    number = engine.submit(request((3,), **options))
    outcome = results(drain(engine))[number]
    assert isinstance(outcome, tuple), outcome
    return outcome


@pytest.mark.parametrize(("pattern", "alphabet", "longest", "limit"), LANGUAGES)
def test_sampling_reaches_exactly_the_outputs_of_the_language_with_their_probabilities(
    pattern: str, alphabet: str, longest: int, limit: int
) -> None:
    """Chi-square against the product of normalized steps; a false alarm has a probability below 1e-5."""
    possible = list(sequences(texts_of(pattern, alphabet, longest), LETTERS, limit))
    continued: dict[tuple[int, ...], set[int]] = {}
    for output in possible:
        for place, token in enumerate(output):
            continued.setdefault(output[:place], set()).add(token)
    expected = {
        output: probability_of(output, lambda before: sorted(continued[before]), lambda before: weights((3, *before)))
        for output in possible
    }
    assert math.isclose(sum(expected.values()), 1.0)
    draws = 1000
    drawn = outputs_of(regex=pattern, max_new_tokens=limit, do_sample=True, num_return_sequences=draws, seed=5)
    counts = Counter(output.token_ids for output in drawn)
    assert counts.keys() <= expected.keys()
    cells = [(counts[output], share * draws) for output, share in expected.items() if share * draws >= 5]
    rest = [(counts[output], share * draws) for output, share in expected.items() if share * draws < 5]
    if rest:
        cells.append((sum(seen for seen, _ in rest), sum(wanted for _, wanted in rest)))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells if wanted > 0)
    freedom = len(cells) - 1
    assert statistic < freedom + 4.5 * math.sqrt(2 * freedom) + 14, (statistic, freedom)


@pytest.mark.parametrize(("pattern", "alphabet", "longest", "limit"), sampled(LANGUAGES, 2))
def test_every_output_of_the_language_has_a_seed_that_draws_it(
    pattern: str, alphabet: str, longest: int, limit: int
) -> None:
    possible = set(sequences(texts_of(pattern, alphabet, longest), LETTERS, limit))
    flat = ToyRuntime(lambda tokens: [1.0] * VOCAB, VOCAB, eos_token_ids=(LETTERS.index(END),))
    engine = Engine(flat)
    wanted = request((3,), regex=pattern, max_new_tokens=limit, do_sample=True, num_return_sequences=700, seed=1)
    number = engine.submit(wanted)
    drawn = results(drain(engine))[number]
    assert isinstance(drawn, tuple)
    reached = {output.token_ids for output in drawn}
    assert reached <= possible
    assert len(reached) == len(possible) or len(possible) > 60, sorted(possible - reached)[:3]


@pytest.mark.parametrize(("pattern", "alphabet", "longest", "limit"), LANGUAGES)
def test_a_full_beam_search_returns_the_best_output_by_the_models_own_probabilities(
    pattern: str, alphabet: str, longest: int, limit: int
) -> None:
    possible = list(sequences(texts_of(pattern, alphabet, longest), LETTERS, limit))

    def logprob(output: tuple[int, ...]) -> float:
        return sum(math.log(weights((3, *output[:place]))[token]) for place, token in enumerate(output))

    best = max(possible, key=logprob)
    width = min(len(possible) + 2, 200)
    found = outputs_of(
        regex=pattern, max_new_tokens=limit, num_beams=width, length_penalty=0.0, early_stopping="never"
    )[0]
    assert found.token_ids == best
    assert found.score == pytest.approx(logprob(best), abs=1e-5)
    assert found.score == pytest.approx(sum(found.logprobs), abs=1e-5), "scores must not be renormalized"


@pytest.mark.parametrize(("pattern", "alphabet", "longest", "limit"), LANGUAGES)
def test_greedy_search_takes_the_best_allowed_token_at_each_step(
    pattern: str, alphabet: str, longest: int, limit: int
) -> None:
    possible = list(sequences(texts_of(pattern, alphabet, longest), LETTERS, limit))
    output: tuple[int, ...] = ()
    while len(output) < limit and (not output or output[-1] != LETTERS.index(END)):
        following = {each[len(output)] for each in possible if each[: len(output)] == output}
        row = weights((3, *output))
        output = (*output, max(sorted(following), key=lambda token: row[token]))
    assert outputs_of(regex=pattern, max_new_tokens=limit)[0].token_ids == output


def test_a_choice_of_fewer_texts_than_beams_returns_them_all_best_first() -> None:
    found = outputs_of(choice=["ab", "b"], num_beams=6, num_return_sequences=3, max_new_tokens=4)
    assert [LETTERS.index(END)] * 3 == [output.token_ids[-1] for output in found]
    assert {tuple(LETTERS[token] for token in output.token_ids[:-1]) for output in found} == {
        ("a", "b"),
        ("ab",),
        ("b",),
    }
    assert [output.score for output in found] == sorted((output.score for output in found), reverse=True)
