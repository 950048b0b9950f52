"""Asks about positions inside the prompt: their answers, and the memory of their logits."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch

from tests.toys import Scripted, drain, mixing_toy, request, results
from unspool.engine import Engine, prompt_rows
from unspool.errors import NumericsError, StrategyError
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import ContinuationScores
from unspool.types import ROOT, Ask, Feed, Finished, Hypothesis, Rows, Score, Top, Turn

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]
ENDING = [Hypothesis(ROOT, 0, None, 0.0)]


@pytest.mark.parametrize("per_call", [1, 100, 1 << 21])
def test_log_probabilities_equal_a_log_softmax_in_double_precision(
    per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_rows, "PROMPT_LOGITS_PER_CALL", per_call)
    logits = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) * 5
    asked: list[tuple[Ask, int]] = [
        (Score(ROOT, (39, 0, 7)), 0),
        (Top(ROOT, 2), 0),
        (Top(ROOT, 3), 1),
        (Score(ROOT, (3,)), 4),
        (Score(ROOT, (5,)), 5),
        (Top(ROOT, 40), 6),
    ]
    expected = logits.double().log_softmax(-1)
    found = list(prompt_rows.prompt_rows(logits, asked))
    for (ask, row), answer in zip(asked, found, strict=True):
        best = expected[row].argsort(descending=True).tolist()
        tokens = [each.token for each in answer.row.candidates]
        assert tokens == (list(ask.tokens) if isinstance(ask, Score) else best[: len(tokens)])
        for each in answer.row.candidates:
            assert each.logprob == each.score == pytest.approx(float(expected[row, each.token]), abs=1e-5)
    assert [len(each.row.candidates) for each in found] == [3, 2, 3, 1, 1, 40]


@pytest.mark.parametrize("per_call", [1, 1 << 21])
def test_ranks_are_places_in_the_sorted_row(per_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_rows, "PROMPT_LOGITS_PER_CALL", per_call)
    logits = torch.tensor([[0.5, 3.0, 3.0, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0, 2.0]])
    asked: list[tuple[Ask, int]] = [
        (Score(ROOT, (1, 2, 0, 4, 3), True), 0),  # equal logits: the lowest token id is better
        (Score(ROOT, (3,)), 0),
        (Score(ROOT, (3,), True), 1),
        (Score(ROOT, (4,), True), 1),
    ]
    found = [answer.row for answer in prompt_rows.prompt_rows(logits, asked)]
    assert [row.ranks for row in found] == [(1, 2, 3, 4, 5), (), (5,), (1,)]
    assert found[1].candidates == found[0].candidates[4:]


class Watched(ToyRuntime):
    """A toy that remembers the logits it has returned, as long as somebody holds them."""

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        rows = super().forward(feeds)
        self.logits = [*getattr(self, "logits", []), weakref.ref(rows.logits)]
        return rows


def test_a_long_prompt_keeps_the_logits_of_one_pass_at_most() -> None:
    toy = Watched(lambda tokens: [1.0 + token % 3 for token in range(12)], 12)
    engine = Engine(toy, max_batch_tokens=2)
    engine.submit(request(PROMPT, max_new_tokens=1, own={"strategy": ContinuationScores(PROMPT[1:] + [0])}))
    events = []
    while not engine.idle:
        events += engine.step()
        assert sum(each() is not None for each in toy.logits) <= 1
    assert len(toy.logits) == 5
    assert isinstance(events[-1], Finished) and len(events[-1].rows) == len(PROMPT)


def asked_twice(ask: Ask) -> Scripted:
    """Return a strategy that asks about a prompt position, and then, in a turn without moves, once more."""
    first = Turn(asks=(Score(ROOT, (2, 1), back=3), Top(ROOT, 3, back=3), Top(ROOT, 1)))
    return Scripted([first, Turn(asks=(ask,))], ENDING)


@pytest.mark.parametrize("ask", [Score(ROOT, (2, 1), back=3), Top(ROOT, 3, back=3)])
def test_the_same_ask_about_a_position_can_be_repeated(ask: Ask) -> None:
    toy = mixing_toy()
    engine = Engine(toy)
    once = Scripted([Turn(asks=(ask,))], ENDING)
    numbers = [engine.submit(request(PROMPT, own={"strategy": each})) for each in (once, asked_twice(ask))]
    rows = {event.request: event.rows for event in drain(engine) if isinstance(event, Finished)}
    assert rows[numbers[0]] == rows[numbers[1]]
    assert len(toy.passes) == 1


def test_a_position_cannot_be_asked_about_otherwise_later() -> None:
    engine = Engine(mixing_toy())
    number = engine.submit(request(PROMPT, own={"strategy": asked_twice(Score(ROOT, (3,), back=3))}))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and "its logits are not kept" in str(error)


def test_logits_that_are_no_distribution_fail_with_their_position() -> None:
    toy = ToyRuntime(lambda tokens: [float("nan") if len(tokens) == 4 else 1.0] * 12, 12)
    engine = Engine(toy)
    number = engine.submit(request(PROMPT, own={"strategy": ContinuationScores(PROMPT[1:] + [0])}, max_new_tokens=1))
    error = results(drain(engine))[number]
    assert isinstance(error, NumericsError) and "position 4" in str(error)
