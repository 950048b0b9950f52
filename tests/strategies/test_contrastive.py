"""Contrastive search on numbers worked by hand, and against its definition written out over whole sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.toys import drain, request, results, run_alone
from unspool.config import GenerationConfig, resolve
from unspool.engine import Engine
from unspool.protocols import Context, Conversation
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies.contrastive import ContrastiveSearch
from unspool.types import (
    ROOT,
    Candidate,
    Commit,
    Committed,
    Drop,
    Extend,
    Fork,
    Hypothesis,
    ModelInfo,
    Output,
    Row,
    Similarity,
    Top,
    Turn,
)

A, B, C, END = range(4)
WORKED = {A: [0, 0.6, 0.4, 0], B: [0, 0.6, 0.4, 0], C: [0.8, 0, 0, 0.2], END: [0, 0, 0, 1.0]}


def worked() -> ToyRuntime:
    return ToyRuntime(WORKED, 4, eos_token_ids=(END,))


def outputs(make: Any, *prompt: int, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, **options))
    assert isinstance(found, tuple), found
    return found


def conversation(penalty_alpha: float, top_k: int) -> Conversation:
    """Return the strategy's own side, to be answered by hand."""
    config = resolve({"penalty_alpha": penalty_alpha, "top_k": top_k}, None, GenerationConfig())
    context = Context(
        config=config, prompt=(A,), max_new_tokens=9, seed=0, info=ModelInfo(name="none", vocab_size=4),
        eos_token_ids=(END,),
    )  # fmt: skip
    return ContrastiveSearch().run(context)


def likely(*pairs: tuple[int, float], ends: str | None = None) -> Row:
    """Return a row of candidates with these probabilities; scores are shifted, so that only `log_norm` sets them."""
    found = (Candidate(t, math.log(p) + 5, math.log(p), "eos" if t == END else ends) for t, p in pairs)
    return Row(tuple(found), log_norm=5.0)


def alike(similarity: float) -> Row:
    return Row((), math.nan, similarity=similarity)


def finish(talk: Conversation, reply: Sequence[Row]) -> list[Hypothesis]:
    with pytest.raises(StopIteration) as stop:
        talk.send(tuple(reply))
    found: list[Hypothesis] = stop.value.value
    return found


def test_contrastive_worked_example() -> None:
    (output,) = outputs(worked, A, penalty_alpha=0.6, top_k=2, max_new_tokens=9)
    assert output.token_ids == (C, END) and output.finish_reason == "eos"
    assert output.score == pytest.approx(math.log(0.4) + math.log(0.2), abs=1e-5) == pytest.approx(-2.5257, abs=1e-4)
    (greedy,) = outputs(worked, A, max_new_tokens=9)
    assert greedy.token_ids == (B,) * 9


def test_the_worked_example_turn_by_turn() -> None:
    """The one kept is the parent of the next candidates, and one that ends is compared without asking what follows."""
    talk = conversation(0.6, 2)
    assert next(talk) == Turn(asks=(Top(ROOT, 2),))
    turn = talk.send((likely((B, 0.6), (C, 0.4)),))
    assert turn.moves == (Fork(0, 1), Extend(0, (B,)), Extend(1, (C,)))
    assert turn.asks == (Similarity(0), Similarity(1), Top(0, 2), Top(1, 2)) and turn.commits == ()
    # -0.36 against 0.16
    turn = talk.send((alike(1.0), alike(0.0), likely((B, 0.6), (C, 0.4)), likely((A, 0.8), (END, 0.2))))
    assert turn.moves == (Drop(0), Fork(1, 2), Extend(1, (A,)), Extend(2, (END,)))
    assert turn.asks == (Similarity(1), Similarity(2), Top(1, 2)) and turn.commits == (Commit(0, 1, 1),)
    # -0.28 against 0.08 - 0.6 * 0.2 / sqrt(0.68)
    (found,) = finish(talk, (alike(1.0), alike(0.2 / math.sqrt(0.68)), likely((B, 1.0))))
    assert (found.branch, found.length) == (2, 1) and found.last is not None and found.last.token == END
    assert found.score == pytest.approx(math.log(0.4) + math.log(0.2))


def test_of_equally_good_candidates_the_first_is_kept() -> None:
    talk = conversation(0.5, 3)
    next(talk)
    talk.send((likely((B, 0.3), (A, 0.3), (C, 0.3), ends="length"),))
    (found,) = finish(talk, (alike(0.7), alike(0.2), alike(0.2)))
    assert found.last is not None and found.last.token == A


def test_a_lone_candidate_needs_no_fork() -> None:
    talk = conversation(0.5, 3)
    next(talk)
    turn = talk.send((likely((B, 1.0)),))
    assert turn.moves == (Extend(ROOT, (B,)),) and turn.asks == (Similarity(ROOT), Top(ROOT, 3))
    turn = talk.send((alike(0.9), likely((C, 1.0))))
    assert turn.moves == (Extend(ROOT, (C,)),) and turn.commits == (Commit(0, ROOT, 1),)


# --- against the definition ---------------------------------------------------------------------------------------

VOCAB = 13


def weights(tokens: tuple[int, ...]) -> list[float]:
    """Return a row that depends on every token so far; the last token ends, and is rarely among the best."""
    state = 7
    for token in tokens:
        state = (state * 31 + token * 17 + 3) % 10007
    return [1.0 + (state * (index + 1) * 7919) % 101 for index in range(VOCAB - 1)] + [25.0]


def mixing() -> ToyRuntime:
    return ToyRuntime(weights, VOCAB, eos_token_ids=(VOCAB - 1,))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))


def by_definition(prompt: tuple[int, ...], alpha: float, k: int, longest: int, forbidden: Sequence[int]) -> list[int]:
    """Write out the definition: every step from all tokens anew, nothing kept but the tokens."""
    tokens = prompt
    while len(tokens) < len(prompt) + longest:
        row = [0.0 if token in forbidden else weight for token, weight in enumerate(weights(tokens))]
        allowed = [token for token in sorted(range(VOCAB), key=lambda token: (-row[token], token)) if row[token]]
        context = [weights(tokens[: end + 1]) for end in range(len(tokens))]

        def worth(token: int) -> float:
            newest = weights((*tokens, token))  # noqa: B023
            penalty = max(cosine(newest, state) for state in context)  # noqa: B023
            return (1 - alpha) * row[token] / sum(row) - alpha * penalty  # noqa: B023

        tokens = (*tokens, max(allowed[:k], key=worth))
        if tokens[-1] == VOCAB - 1:
            break
    return list(tokens[len(prompt) :])


@pytest.mark.parametrize(("alpha", "k"), [(0.05, 2), (0.3, 4), (0.6, 4), (0.9, 6), (1.0, VOCAB + 3)])
def test_tokens_are_those_of_the_definition(alpha: float, k: int) -> None:
    ended = 0
    for prompt in [(1,), (2, 3), (4, 4, 4), (5, 0, 7, 1, 6)]:
        for forbidden in [(), (0, 2, 3, 8)]:
            exact = by_definition(prompt, alpha, k, 10, forbidden)
            (found,) = outputs(
                mixing,
                *prompt,
                penalty_alpha=alpha,
                top_k=k,
                max_new_tokens=10,
                suppress_tokens=list(forbidden) or None,
            )
            assert list(found.token_ids) == exact
            assert found.score == pytest.approx(sum(found.logprobs), abs=1e-4)
            ended += found.finish_reason == "eos"
    assert ended < 8


def test_the_penalty_changes_the_tokens() -> None:
    texts = {
        outputs(mixing, 1, penalty_alpha=alpha, top_k=5, max_new_tokens=8)[0].token_ids for alpha in (0.01, 0.5, 0.95)
    }
    assert len(texts) > 1


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_a_pass_a_token_and_one_more(longest: int) -> None:
    runtime = mixing()
    engine = Engine(runtime)
    number = engine.submit(request([1, 2], penalty_alpha=0.5, top_k=4, max_new_tokens=longest))
    found = results(drain(engine))[number]
    assert isinstance(found, tuple)
    assert len(runtime.passes) == len(found[0].token_ids) + 1
    assert runtime.passes[0] == (2,) and all(each == (1,) * 4 for each in runtime.passes[1:])


def test_the_streamed_tokens_are_the_final_ones_and_come_one_by_one() -> None:
    engine = Engine(mixing())
    number = engine.submit(request([3], penalty_alpha=0.6, top_k=4, max_new_tokens=9))
    events = drain(engine)
    pieces = [event.token_ids for event in events if isinstance(event, Committed)]
    found = results(events)[number]
    assert isinstance(found, tuple)
    assert sum(pieces, ()) == found[0].token_ids and {len(piece) for piece in pieces} == {1}


def test_requests_in_company_write_what_they_write_alone() -> None:
    engine = Engine(mixing())
    wanted = [request([p], penalty_alpha=0.1 * p, top_k=2 + p, max_new_tokens=4 + p) for p in range(1, 7)]
    wanted += [request([2], max_new_tokens=9), request([4], num_beams=3, max_new_tokens=6)]
    numbers = [engine.submit(each) for each in wanted]
    together = results(drain(engine))
    assert [together[number] for number in numbers] == [run_alone(mixing, each) for each in wanted]
