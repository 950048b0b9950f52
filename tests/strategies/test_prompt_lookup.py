"""The n-gram index against a scan of the whole sequence, and prompt lookup against plain greedy search and sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest

from tests.sampling import sampled
from tests.strategies.test_assisted import EqualEnds, draw_options, has_same_outputs
from tests.toys import drain, mixing_toy, request, results, run_alone
from unspool.config import GenerationConfig, resolve
from unspool.engine import Engine
from unspool.protocols import Context
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies.assisted import Assisted
from unspool.strategies.drafting import DraftedOutput, Proposals, TurnBuilder
from unspool.strategies.prompt_lookup import NgramIndex, PromptLookup
from unspool.types import ModelInfo, Output


def scan(tokens: list[int], longest: int, count: int) -> tuple[int, ...]:
    """Look for the newest tokens at every place, the most recent first."""
    for length in range(longest, 0, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if len(tokens) > length and tokens[start : start + length] == tokens[-length:]:
                grown = list(tokens)
                for index in range(count):
                    grown.append(grown[start + length + index])
                return tuple(grown[len(tokens) :])
    return ()


def guesses(prompt: Sequence[int], *written: int, eos: tuple[int, ...] = (), **options: Any) -> tuple[int, ...]:
    """Return what prompt lookup drafts behind a prompt and an output."""
    return drafts(prompt, [written], eos, **options).get(0, ())


def drafts(
    prompt: Sequence[int], outputs: Sequence[Sequence[int]], eos: tuple[int, ...] = (), **options: Any
) -> Proposals:
    """Return what prompt lookup drafts behind a prompt and each of several outputs."""
    options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 50} | options
    context = Context(
        config=resolve(options, None, GenerationConfig()),
        prompt=tuple(prompt),
        max_new_tokens=options["max_new_tokens"],
        seed=0,
        info=ModelInfo(name="none", vocab_size=10),
        eos_token_ids=eos,
    )
    live = [DraftedOutput(output, list(written)) for output, written in enumerate(outputs)]
    with pytest.raises(StopIteration) as stop:
        next(PromptLookup(context).propose(live, TurnBuilder()))
    return cast(Proposals, stop.value.value)


def test_prompt_lookup_worked_example() -> None:
    assert guesses([5, 6, 7, 8, 9, 6, 7]) == (8, 9, 6)
    assert guesses([5, 6, 7, 8, 9, 6]) == (7, 8, 9)
    assert guesses([1, 2, 1, 2]) == (1, 2, 1)


def test_longer_runs_win_and_of_equal_ones_the_most_recent() -> None:
    assert guesses([1, 2, 3, 9, 2, 4, 1, 2], max_matching_ngram_size=2, prompt_lookup_num_tokens=1) == (3,)
    assert guesses([1, 2, 3, 9, 2, 4, 1, 2], max_matching_ngram_size=1, prompt_lookup_num_tokens=1) == (4,)
    assert guesses([1, 2, 3, 1, 2, 4, 1, 2], prompt_lookup_num_tokens=1) == (4,)


def test_output_is_searched_as_well_as_the_prompt() -> None:
    assert guesses([1], 2, 3, 4, 2, 3) == (4, 2, 3)
    assert guesses([7, 1, 2], 5, 7) == (1, 2, 5)


def test_each_output_is_searched_apart() -> None:
    assert drafts([1, 2], [[5, 1], [6, 1], [7]]) == {0: (2, 5, 1), 1: (2, 6, 1)}


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert guesses([1, 2, 3, 4]) == ()
    assert guesses([1]) == ()


def test_guesses_stop_before_an_end_and_leave_room_for_one_more_token() -> None:
    assert guesses([1, 2, 9, 3, 1], eos=(9,)) == (2,)
    assert guesses([1, 9, 3, 1], eos=(9,)) == ()
    assert guesses([4, 1, 2, 3], 4, max_new_tokens=4) == (1, 2)
    assert guesses([4, 1, 2, 3], 4, max_new_tokens=2) == ()


@pytest.mark.parametrize("seed", range(40))
def test_the_index_finds_what_a_scan_finds_however_it_grew(seed: int) -> None:
    rng = random.Random(seed)
    longest, vocab = rng.randint(1, 4), rng.choice((2, 3, 6))
    tokens: list[int] = []
    index = NgramIndex(longest)
    for _ in range(25):
        piece = [rng.randrange(vocab) for _ in range(rng.randint(1, 4))]
        tokens += piece
        index.extend(piece)
        if rng.random() < 0.2:
            parent, index = index, index.copy()
            parent.extend([0, 1, 0])
        assert len(index) == len(tokens)
        assert index.continuation(7) == scan(tokens, longest, 7)


def loop_toy() -> ToyRuntime:
    """Mostly repeats what followed the last two tokens, so that looking them up helps."""

    def probabilities(tokens: tuple[int, ...]) -> Sequence[float]:
        last = sum(token * factor for token, factor in zip(tokens[-2:], (3, 5), strict=False))
        row = [1.0 + (last * (token + 2) * 7919 + sum(tokens)) % 7 for token in range(9)]
        row[last % 8] += 60.0 if len(tokens) % 7 else 3.0
        return [*row[:8], 0.4]

    return ToyRuntime(probabilities, 9, eos_token_ids=(8,))


@pytest.mark.parametrize("number", sampled(range(400), 40))
def test_the_output_is_that_of_plain_decoding_and_each_round_takes_one_pass(number: int) -> None:
    rng = random.Random(number)
    make = rng.choice((mixing_toy, loop_toy, loop_toy))
    options = draw_options(rng, vocab=9)
    prompt = [rng.randrange(8) for _ in range(rng.randint(1, 12))]
    lookup = {"prompt_lookup_num_tokens": rng.randint(1, 8), "max_matching_ngram_size": rng.randint(1, 4)}
    ends = (EqualEnds(rng.randint(2, 4)),) if rng.random() < 0.3 else ()
    plain = run_alone(make, request(prompt, seed=number, own={"criteria": ends}, **options))
    runtime = make()
    engine = Engine(runtime)
    engine.submit(request(prompt, seed=number, own={"strategy": Assisted(), "criteria": ends}, **options, **lookup))
    found = results(drain(engine))[0]
    assert has_same_outputs(found, plain)
    assert not runtime.cached
    assert len(runtime.passes) <= max(len(output.token_ids) for output in found)


def test_a_loop_is_verified_in_a_few_passes() -> None:
    runtime = ToyRuntime({0: [0, 1.0, 0], 1: [0, 0, 1.0], 2: [1.0, 0, 0]}, 3)
    engine = Engine(runtime)
    engine.submit(request([0, 1, 2, 0], own={"strategy": Assisted()}, prompt_lookup_num_tokens=9, max_new_tokens=31))
    (output,) = results(drain(engine))[0]  # type: ignore[misc]
    assert output.token_ids == tuple((1 + index) % 3 for index in range(31))
    assert runtime.passes == [(4,), (10,), (10,), (10,)]


def test_outputs_look_up_what_they_wrote_themselves() -> None:
    """Several samples of one prompt part ways, and each goes on with its own words."""
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 5, "max_new_tokens": 30, "temperature": 0.5}
    plain = run_alone(loop_toy, request([1, 2, 3], seed=6, **options))
    runtime = loop_toy()
    engine = Engine(runtime)
    engine.submit(request([1, 2, 3], seed=6, own={"strategy": Assisted()}, prompt_lookup_num_tokens=4, **options))
    found = results(drain(engine))[0]
    assert has_same_outputs(found, plain) and isinstance(found, tuple)
    assert len({output.token_ids for output in found}) == 5
    assert len(runtime.passes) < max(len(output.token_ids) for output in found)


def test_requests_with_and_without_lookup_share_passes() -> None:
    runtime = loop_toy()
    engine = Engine(runtime)
    wanted = [
        request([1, 2], max_new_tokens=12, ignore_eos=True),
        request([1, 2], own={"strategy": Assisted()}, prompt_lookup_num_tokens=4, max_new_tokens=12, ignore_eos=True),
    ]
    numbers = [engine.submit(each) for each in wanted]
    outcome = results(drain(engine))
    outputs: list[tuple[Output, ...]] = [outcome[number] for number in numbers]  # type: ignore[misc]
    assert outputs[0][0].token_ids == outputs[1][0].token_ids
    assert len(runtime.passes) == 12
