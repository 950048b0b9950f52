"""Tentative events: what the leading branch holds beyond the committed tokens, said when it changes, to who asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.test_costs import Overheard
from tests.engine.test_mixed_company import toys
from tests.sampling import sampled
from tests.toys import drain, mixing_toy, request
from unspool.engine import Engine
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import STRATEGIES, WithPromptScores
from unspool.types import DRAFT, ROOT, Committed, Event, Extend, Finished, Fork, Keep, Tentative, Turn

Path = tuple[int, ...]


def listen(
    prompt: Sequence[int], *, own: dict[str, Any] | None = None, tentative: bool = True, **options: Any
) -> tuple[list[Event], list[Turn]]:
    """Run a request alone; returns its events and the strategy's Turns.

    own: see tests.toys.request; besides, `model` is another one than a toy, and an assistant of True a similar toy.
    """
    model, draft = toys()
    own = dict(own or {})
    model = own.pop("model", model)
    if own.get("assistant") is True:
        own["assistant"] = draft
    config = request(prompt, own=dict(own), **options).config
    own["strategy"] = overheard = Overheard(own.get("strategy") or STRATEGIES[config.strategy or "greedy"])
    engine = Engine(model)
    engine.submit(request(prompt, own=own | {"tentative": tentative}, **options))
    return drain(engine), overheard.turns


class Screen:
    """What a reader of output 0 sees.

    text: the committed tokens. tail: what came last, without what commits have eaten since; a commit that says
    otherwise takes all of it. sent: what came last. eaten: whether anything was committed since.
    """

    def __init__(self) -> None:
        self.text: Path = ()
        self.tail: Path = ()
        self.sent: Path = ()
        self.eaten = False
        self.over = False

    def show(self, event: Committed | Tentative) -> None:
        if isinstance(event, Tentative):
            assert not self.over or not event.token_ids, "a tail behind the end"
            assert event.output == 0
            self.tail = self.sent = event.token_ids
            self.eaten = False
            return
        count = len(event.token_ids)
        self.tail = self.tail[count:] if self.tail[:count] == event.token_ids else ()
        self.text, self.eaten = self.text + event.token_ids, True
        if event.finish_reason is not None:
            self.tail, self.over = (), True


class Branches:
    """The tokens of a strategy's branches, from its moves."""

    def __init__(self) -> None:
        self.tokens: dict[int, Path] = {ROOT: (), DRAFT: ()}

    def apply(self, turn: Turn) -> None:
        for move in turn.moves:
            if isinstance(move, Keep):
                self.tokens[move.branch] = self.tokens[move.branch][: move.length]
        for move in turn.moves:
            if isinstance(move, Fork):
                self.tokens[move.child] = self.tokens[move.parent]
        for move in turn.moves:
            if isinstance(move, Extend):
                self.tokens[move.branch] += move.tokens


def tails(turns: Sequence[Turn], events: Sequence[Event]) -> list[Path]:
    """Follow the events along the Turns, asserting after each that the screen is right; returns all tails sent.

    The leader is the first branch that a Turn asks about, unless that moves nothing: a second look changes no rank.
    """
    branches, screen, leader = Branches(), Screen(), ROOT
    heard = [event for event in events if isinstance(event, Committed | Tentative) and event.output == 0]
    seen: list[Path] = []
    for turn in turns:
        branches.apply(turn)
        for commit in turn.commits:
            if commit.output == 0 and (commit.length > len(screen.text) or commit.finished):
                event = heard.pop(0)
                assert isinstance(event, Committed)
                screen.show(event)
        if turn.asks[0].branch <= DRAFT:
            continue
        leader = turn.asks[0].branch if turn.moves else leader
        path, length = branches.tokens[leader], len(screen.text)
        tail = path[length:] if path[:length] == screen.text and not screen.over else ()
        if heard and heard[0] == Tentative(request=0, output=0, token_ids=tail):
            assert tail != screen.sent or screen.eaten, "nothing new"
            screen.show(heard.pop(0))
            seen.append(tail)
        assert screen.tail == tail
    assert all(isinstance(event, Committed) for event in heard), "said too much"
    for event in heard:
        screen.show(event)
    finished = events[-1]
    assert isinstance(finished, Finished) and screen.text == finished.outputs[0].token_ids and screen.over
    return seen


SAMPLING: dict[str, Any] = {"do_sample": True}
TALES: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 3},
    "beam, several outputs": {"num_beams": 4, "num_return_sequences": 4, "early_stopping": "never"},
    "beam, ahead": {"num_beams": 4, "lookahead_steps": 3},
    "beam sampling": SAMPLING | {"num_beams": 3},
    "dola, beams": {"num_beams": 2, "dola_layers": "low"},
    "constrained": {"num_beams": 3, "force_words_ids": [[5], [3, 8]]},
    "stochastic": {"strategy": "stochastic_beam", "num_beams": 4, "num_return_sequences": 4},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "sequence_bias": {(2, 7): 20.0, (7, 2): 20.0}},
    "assisted": {"own": {"assistant": True}, "num_assistant_tokens": 3},
    "assisted, four outputs": {"own": {"assistant": True}, "num_return_sequences": 4} | SAMPLING,
    "four samples": {"num_return_sequences": 4} | SAMPLING,
}
SECOND_LOOKS: dict[str, dict[str, Any]] = {
    "constrained, in vain": {"num_beams": 3, "force_words_ids": [[5]], "suppress_tokens": [5]},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
}
ENDS: dict[str, Any] = {"eos_token_id": (16, 12, 9)}


@pytest.mark.parametrize("name", TALES)
@pytest.mark.parametrize("seed", sampled(range(40), 4))
def test_the_reader_is_told_of_every_change_of_the_leader_and_of_nothing_else(name: str, seed: int) -> None:
    options = {"max_new_tokens": 14, "seed": seed} | ENDS | TALES[name]
    events, turns = listen([2, 7, 2, 7, 2][: 2 + seed % 4], **options)
    found = tails(turns, events)
    if name == "four samples":
        assert not found, "what is drawn stands, and is committed at once"


@pytest.mark.parametrize("name", SECOND_LOOKS)
@pytest.mark.parametrize("seed", [16, 24])
def test_a_second_look_changes_no_leader(name: str, seed: int) -> None:
    options = {"max_new_tokens": 14, "seed": seed} | ENDS | SECOND_LOOKS[name]
    events, turns = listen([2, 7], **options)
    assert tails(turns, events)


@pytest.mark.parametrize("name", TALES)
def test_who_did_not_ask_is_told_what_is_committed_alone(name: str) -> None:
    options = {"max_new_tokens": 12} | TALES[name]
    asked, _ = listen([2, 7], **options)
    plain, _ = listen([2, 7], tentative=False, **options)
    assert not any(isinstance(event, Tentative) for event in plain)
    assert [e for e in plain if isinstance(e, Committed)] == [e for e in asked if isinstance(e, Committed)]


def test_a_company_hears_each_its_own() -> None:
    wanted = [
        request([2, 7, seed], seed=seed, own={"tentative": seed % 2 == 0}, max_new_tokens=8, **options)
        for seed in range(6)
        for options in (TALES["beam"], TALES["contrastive"])
    ]
    alone = []
    for each in wanted:
        engine = Engine(mixing_toy())
        engine.submit(each)
        alone.append([event.token_ids for event in drain(engine) if isinstance(event, Tentative)])
    engine = Engine(mixing_toy())
    numbers = [engine.submit(each) for each in wanted]
    events = drain(engine)
    for number, each, expected in zip(numbers, wanted, alone, strict=True):
        found = [e.token_ids for e in events if isinstance(e, Tentative) and e.request == number]
        assert found == expected
        assert bool(found) <= each.tentative
    assert sum(map(bool, alone)) == 6


def test_a_tail_that_comes_again_behind_a_commit_is_said_again() -> None:
    """The model and its draft say the same token for ever, so every guess looks like the one before."""
    options: dict[str, Any] = {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"}
    same, twin = (ToyRuntime({0: [1.0]}, 1) for _ in range(2))
    events, turns = listen([0], own={"model": same, "assistant": twin}, max_new_tokens=12, **options)
    assert tails(turns, events) == [(0, 0, 0), (0, 0, 0), (0, 0)]


@pytest.mark.parametrize("by", ["logprob", "mbr"])
@pytest.mark.parametrize("echo", [False, True])
def test_best_of_has_no_leader(by: str, echo: bool) -> None:
    """Which of its samples wins is not known before all are finished."""
    own = {"strategy": WithPromptScores(STRATEGIES["best_of"])} if echo else {}
    events, _ = listen([2, 7], own=own, best_of=3, best_of_by=by, do_sample=True, max_new_tokens=5)
    assert not any(isinstance(event, Tentative) for event in events)


@pytest.mark.parametrize("name", ["beam", "constrained", "contrastive"])
def test_the_prompts_scores_change_no_tail(name: str) -> None:
    strategy = STRATEGIES["beam" if name == "beam" else name.replace("constrained", "constrained_beam")]
    options = {"max_new_tokens": 8} | TALES[name]
    echoed, _ = listen([2, 7, 5], own={"strategy": WithPromptScores(strategy)}, **options)
    plain, _ = listen([2, 7, 5], **options)
    tentative = [[e.token_ids for e in events if isinstance(e, Tentative)] for events in (echoed, plain)]
    assert tentative[0] == tentative[1] != []
