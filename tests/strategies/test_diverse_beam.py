"""Diverse beam search on a table worked by hand, against the paper's definition, as a stream, and by passes counted."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.sampling import sampled
from tests.toys import drain, mixing_toy, request, results, run_alone
from unspool.engine import Engine
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Committed, Output

A, B, C = range(3)


def outputs_of(make: Any, *prompt: int, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, **options))
    assert isinstance(found, tuple), found
    return found


def worked() -> ToyRuntime:
    return ToyRuntime({A: [0, 0.6, 0.4], B: [0.05, 0.5, 0.45], C: [0.2, 0.6, 0.2]}, 3)


def test_diverse_beam_search_worked_example() -> None:
    options = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 2}
    found = outputs_of(worked, A, num_beam_groups=2, diversity_penalty=0.5, **options)
    assert [output.token_ids for output in found] == [(B, B), (C, B)]
    assert [output.score for output in found] == pytest.approx([math.log(0.3), math.log(0.24) - 0.5], abs=1e-6)
    assert [output.score for output in found] == pytest.approx([-1.20, -1.93], abs=5e-3)
    assert found[1].logprobs == pytest.approx((math.log(0.4), math.log(0.6)), abs=1e-6)
    assert found[1].scores == pytest.approx((math.log(0.4), math.log(0.6) - 0.5), abs=1e-6)
    plain = outputs_of(worked, A, **options)
    assert [output.token_ids for output in plain] == [(B, B), (B, C)]


def test_each_group_keeps_its_own_score_of_the_first_token() -> None:
    """Group 2 takes b, the choice of group 1, in spite of the penalty: ln 0.6 - 0.1 is above ln 0.4."""
    options = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 2}
    found = outputs_of(worked, A, num_beam_groups=2, diversity_penalty=0.1, **options)
    first, second = found[0], found[1]
    assert (first.token_ids[0], second.token_ids[0]) == (B, B)
    assert first.scores[0] == pytest.approx(math.log(0.6), abs=1e-6)
    assert second.scores[0] == pytest.approx(math.log(0.6) - 0.1, abs=1e-6)
    assert first.logprobs[0] == second.logprobs[0] == pytest.approx(math.log(0.6), abs=1e-6)
    for output in found:
        assert sum(output.scores) == pytest.approx(output.score, abs=1e-6)


class Spread:
    """A model of its own for each number: unequal probabilities that depend on all tokens, two tokens that end."""

    def __init__(self, number: int, vocab: int) -> None:
        self.number, self.vocab, self.ends = number, vocab, (vocab - 2, vocab - 1)
        self._rows: dict[tuple[int, ...], list[float]] = {}

    def row(self, tokens: tuple[int, ...]) -> list[float]:
        """Return the probabilities of what follows."""
        if tokens not in self._rows:
            rng = random.Random(f"{self.number} {tokens}")
            weights = [rng.random() ** 3 for _ in range(self.vocab)]
            self._rows[tokens] = [weight / sum(weights) for weight in weights]
        return self._rows[tokens]

    def runtime(self) -> ToyRuntime:
        return ToyRuntime(self.row, self.vocab, eos_token_ids=self.ends)


class Config(NamedTuple):
    """A random request; `options` are those of the search."""

    model: Spread
    prompt: tuple[int, ...]
    options: dict[str, Any]


def draw(number: int) -> Config:
    rng = random.Random(number)
    vocab = rng.randint(6, 12)
    groups, size = rng.choice([(2, 1), (3, 1), (2, 2), (3, 2), (2, 3), (5, 1)])
    options = {
        "num_beams": groups * size,
        "num_beam_groups": groups,
        "num_return_sequences": rng.randint(1, groups * size),
        "diversity_penalty": rng.choice([0.05, 0.3, 1.0, 5.0]),
        "length_penalty": rng.choice([-0.5, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": rng.choice([True, False, "never"]),
        "max_new_tokens": rng.randint(1, 7),
        "pad_token_id": rng.choice([None, rng.randrange(vocab)]),
    }
    return Config(Spread(number, vocab), (rng.randrange(vocab), rng.randrange(vocab)), options)


class Reference:
    """The paper's algorithm 1 in plain loops over whole rows of probabilities, one group at a time.

    `live` and `finished` are (tokens, total) and (tokens, score), best first.
    """

    def __init__(self, config: Config) -> None:
        self.model, self.prompt, options = config
        self.penalty, self.power = options["diversity_penalty"], options["length_penalty"]
        self.early, self.longest = options["early_stopping"], options["max_new_tokens"]
        self.count = options["num_return_sequences"]
        self.groups = options["num_beam_groups"]
        self.size = options["num_beams"] // self.groups
        self.pad = self.model.ends[0] if options["pad_token_id"] is None else options["pad_token_id"]
        self.live: list[list[tuple[tuple[int, ...], float]]] = [[((), 0.0)] for _ in range(self.groups)]
        self.finished: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in range(self.groups)]

    def run(self) -> list[tuple[tuple[int, ...], float]]:
        for length in range(1, self.longest + 1):
            taken: list[int] = []
            for group in range(self.groups):
                taken += self.step(group, length, taken) if self.live[group] else [self.pad] * self.size
        every = [each for finished in self.finished for each in finished]
        return sorted(every, key=lambda each: -each[1])[: self.count]

    def continuations(self, group: int, taken: list[int]) -> Iterator[tuple[tuple[int, ...], float]]:
        for tokens, total in self.live[group]:
            for token, p in enumerate(self.model.row(self.prompt + tokens)):
                yield (*tokens, token), total + math.log(p) - self.penalty * taken.count(token)

    def step(self, group: int, length: int, taken: list[int]) -> list[int]:
        """Let one group choose; returns its choices."""
        ranked = sorted(self.continuations(group, taken), key=lambda each: -each[1])
        going = [each for each in ranked if each[0][-1] not in self.model.ends][: self.size]
        chosen = [tokens[-1] for tokens, _ in going]
        self.finish(group, [each for each in ranked[: self.size] if each[0][-1] in self.model.ends])
        if self.is_over(group, ranked[0][1], length):
            going = []
        elif length == self.longest:
            self.finish(group, going)
            going = []
        self.live[group] = going
        return chosen

    def finish(self, group: int, sequences: list[tuple[tuple[int, ...], float]]) -> None:
        scored = [(tokens, total / len(tokens) ** self.power) for tokens, total in sequences]
        self.finished[group] = sorted(self.finished[group] + scored, key=lambda each: -each[1])[: self.size]

    def is_over(self, group: int, best: float, length: int) -> bool:
        """Whether the group's pool is full, and by the rule chosen nothing better can come."""
        if len(self.finished[group]) < self.size:
            return False
        if self.early == "never" and self.power > 0:
            length = self.longest
        return self.early is True or best / length**self.power <= self.finished[group][-1][1]


@pytest.mark.parametrize("number", sampled(range(600), 200))
def test_the_outputs_are_those_of_the_papers_definition(number: int) -> None:
    config = draw(number)
    expected = Reference(config).run()
    found = outputs_of(config.model.runtime, *config.prompt, **config.options)
    assert [output.token_ids for output in found] == [tokens for tokens, _ in expected]
    assert [output.score for output in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_the_drill_has_what_it_is_about() -> None:
    """Groups that end before others, repeated outputs, penalties that change the outcome, all ways to stop."""
    early = repeated = changed = 0
    for number in range(200):
        config = draw(number)
        expected = Reference(config).run()
        tokens = [tokens for tokens, _ in expected]
        early += any(len(each) < config.options["max_new_tokens"] for each in tokens)
        repeated += len(set(tokens)) < len(tokens)
        other = config._replace(options=config.options | {"diversity_penalty": 0.0})
        changed += [tokens for tokens, _ in Reference(other).run()] != tokens
    assert early > 100 and repeated > 10 and changed > 60, (early, repeated, changed)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_there_is_one_pass_a_token_however_many_groups(groups: int) -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    number = engine.submit(
        request(
            [1, 2, 3],
            num_beams=6,
            num_beam_groups=groups,
            diversity_penalty=0.5 if groups > 1 else 0.0,
            max_new_tokens=6,
            suppress_tokens=[16],
        )
    )
    assert isinstance(results(drain(engine))[number], tuple)
    assert runtime.passes[0] == (3,)
    assert runtime.passes[1:] == [(1,) * 6] * 5


@pytest.mark.parametrize("number", sampled(range(600), 60, seed=1))
def test_the_streamed_tokens_are_the_final_ones(number: int) -> None:
    config = draw(number)
    engine = Engine(config.model.runtime())
    submitted = engine.submit(request(config.prompt, **config.options))
    events = drain(engine)
    outputs = results(events)[submitted]
    assert isinstance(outputs, tuple), outputs
    for index, output in enumerate(outputs):
        commits = [event for event in events if isinstance(event, Committed) and event.output == index]
        assert tuple(token for event in commits for token in event.token_ids) == output.token_ids
        assert commits[-1].finish_reason == output.finish_reason


def test_what_all_groups_share_is_committed_before_the_end() -> None:
    """Token 0 is so probable at first that all groups choose it in spite of the penalty."""

    def row(tokens: tuple[int, ...]) -> list[float]:
        return [0.9, 0.05, 0.05] if len(tokens) < 4 else [0.2, 0.5, 0.3]

    engine = Engine(ToyRuntime(row, 3))
    engine.submit(request([0], num_beams=2, num_beam_groups=2, diversity_penalty=0.5, max_new_tokens=8))
    commits = [event for event in drain(engine) if isinstance(event, Committed)]
    assert [event.token_ids for event in commits[:3]] == [(0,), (0,), (0,)]
    assert len(commits) > 3


def test_equal_continuations_go_to_the_lower_token_and_the_earlier_group() -> None:
    def even() -> ToyRuntime:
        return ToyRuntime({token: [1.0] * 4 for token in range(4)}, 4)

    found = outputs_of(
        even, 0, num_beams=3, num_beam_groups=3, num_return_sequences=3, diversity_penalty=1.0, max_new_tokens=2
    )
    assert [output.token_ids for output in found] == [(0, 0), (1, 1), (2, 2)]
    assert len({output.score for output in found}) == 1


def test_processors_that_see_the_output_see_each_groups_own() -> None:
    """With no pair of tokens allowed twice no output has one, and the scores are the ones of the tokens."""
    for prompt in range(8):
        found = outputs_of(
            mixing_toy, prompt, num_beams=4, num_beam_groups=2, num_return_sequences=4, diversity_penalty=0.8,
            no_repeat_ngram_size=2, max_new_tokens=9, length_penalty=0.0,
        )  # fmt: skip
        for output in found:
            tokens = (prompt, *output.token_ids)
            pairs = list(itertools.pairwise(tokens))
            assert len(set(pairs)) == len(pairs)
            assert output.score <= sum(output.logprobs) + 1e-5


@pytest.mark.parametrize("number", sampled(range(600), 40, seed=2))
def test_the_scores_of_an_outputs_tokens_are_those_its_own_group_chose_from(number: int) -> None:
    """The penalty is so great that no two groups choose a first token alike: its scores differ from look to look."""
    config = draw(number)
    power = config.options["length_penalty"]
    for output in outputs_of(config.model.runtime, *config.prompt, **config.options | {"diversity_penalty": 40.0}):
        assert output.score == pytest.approx(sum(output.scores) / len(output.token_ids) ** power, abs=1e-3)
