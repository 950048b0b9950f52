"""What each strategy costs, where its algorithm fixes it: forward passes, rows in each, and copies of branches."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from tests.engine.test_mixed_company import ENDS, Meeting, company, toys
from tests.sampling import sampled
from tests.toys import Scripted, drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.protocols import Context, Conversation, Strategy
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import STRATEGIES, ContinuationScores, NextTokenQuery, WithPromptScores
from unspool.types import DRAFT, ROOT, Drop, Event, Extend, Fork, FullDistribution, Output, Score, Top, Turn

PROMPT = [3, 1, 4, 1]
LENGTH = 9


class Overheard:
    """Another strategy's conversation, and the Turns it took."""

    def __init__(self, inner: Strategy) -> None:
        self._inner = inner
        self.turns: list[Turn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, context: Context) -> Conversation:
        conversation = self._inner.run(context)
        turn = next(conversation)
        while True:
            self.turns.append(turn)
            reply = yield turn
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


class Bill(NamedTuple):
    """What one request cost, and what came of it."""

    runtime: ToyRuntime
    draft: ToyRuntime
    outputs: tuple[Output, ...]
    turns: list[Turn]
    events: list[Event]

    @property
    def rows(self) -> list[int]:
        """Sequences in each pass of the model."""
        return [len(each) for each in self.runtime.passes]

    @property
    def longest(self) -> int:
        return max(len(output.token_ids) for output in self.outputs)


def bill(
    *, own: dict[str, Any] | None = None, make: Callable[[], tuple[ToyRuntime, ToyRuntime]] = toys, **options: Any
) -> Bill:
    """Run one request alone. own: see tests.toys.request; an assistant of True is the draft that `make` returns."""
    runtime, draft = make()
    own = dict(own or {})
    if own.get("assistant"):
        own["assistant"] = draft
    options = {"max_new_tokens": LENGTH, "ignore_eos": True} | options
    config = request(PROMPT, own=dict(own), **options).config
    own["strategy"] = overheard = Overheard(own.get("strategy") or STRATEGIES[config.strategy or "greedy"])
    engine = Engine(runtime)
    number = engine.submit(request(PROMPT, own=own, **options))
    events = drain(engine)
    outputs = results(events)[number]
    assert isinstance(outputs, tuple), outputs
    return Bill(runtime, draft, outputs, overheard.turns, events)


# --- one pass a token ---------------------------------------------------------------------------------------------

DRAWS: dict[str, Any] = {"do_sample": True}
FORCED: dict[str, Any] = {"num_beams": 5, "force_words_ids": [[5, 6], [[7], [8, 9]]]}
ONE_A_TOKEN: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (1, {}),
    "sample": (1, DRAWS),
    "sample, seven outputs": (7, DRAWS | {"num_return_sequences": 7}),
    "best of six": (6, {"best_of": 6, "num_return_sequences": 2}),
    "best of four by risk": (4, {"best_of": 4, "best_of_by": "mbr"}),
    "dola": (1, {"dola_layers": "low"}),
    "dola, sampled": (3, DRAWS | {"dola_layers": "high", "num_return_sequences": 3}),
    "beam": (5, {"num_beams": 5}),
    "beam, five outputs": (5, {"num_beams": 5, "num_return_sequences": 5, "early_stopping": "never"}),
    "beam sampling": (4, DRAWS | {"num_beams": 4}),
    "diverse, two groups": (6, {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.5}),
    "diverse, three groups": (6, {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5}),
    "diverse, six groups": (6, {"num_beams": 6, "num_beam_groups": 6, "diversity_penalty": 0.5}),
    "constrained": (5, FORCED),
    "constrained, in order": (5, FORCED | {"force_words_ordered": True}),
    "stochastic": (5, {"strategy": "stochastic_beam", "num_beams": 5, "num_return_sequences": 5}),
}


@pytest.mark.parametrize("name", ONE_A_TOKEN)
def test_one_pass_a_token_for_all_branches_together_and_the_prompt_once(name: str) -> None:
    width, options = ONE_A_TOKEN[name]
    found = bill(**options)
    assert found.longest == LENGTH
    assert found.runtime.passes == [(len(PROMPT),), *[(1,) * width] * (LENGTH - 1)]


@pytest.mark.parametrize("name", ["greedy", "sample, seven outputs", "beam", "diverse, three groups", "constrained"])
def test_guidance_takes_no_pass_more_and_two_rows_for_one(name: str) -> None:
    width, options = ONE_A_TOKEN[name]
    found = bill(own={"negative_prompt": (9, 9)}, guidance_scale=1.5, **options)
    assert found.runtime.passes == [(len(PROMPT), 2), *[(1,) * width * 2] * (LENGTH - 1)]
    assert found.runtime.num_forks == 2 * sum(isinstance(move, Fork) for turn in found.turns for move in turn.moves)


@pytest.mark.parametrize("width", [2, 5])
def test_contrastive_search_takes_one_pass_more_than_it_writes_tokens(width: int) -> None:
    found = bill(penalty_alpha=0.6, top_k=width)
    assert found.runtime.passes == [(len(PROMPT),), *[(1,) * width] * LENGTH]
    assert found.runtime.num_forks == (width - 1) * LENGTH


def test_an_output_that_has_ended_costs_nothing_more() -> None:
    found = bill(do_sample=True, num_return_sequences=9, ignore_eos=False, eos_token_id=(2, 4, 6, 8), seed=1)
    lengths = [len(output.token_ids) for output in found.outputs]
    assert len(set(lengths)) > 2
    # The pass behind n tokens serves the outputs that have more than n.
    assert found.rows[1:] == [sum(length > n for length in lengths) for n in range(1, max(lengths))]


QUERIES: dict[str, Any] = {
    "next token": NextTokenQuery(),
    "score": ContinuationScores((4, 1, 5)),
    "looks at everything in turn": Scripted(
        [
            Turn(asks=(ask,))
            for ask in (Top(ROOT, 3), FullDistribution(ROOT), Score(ROOT, (5,)), Top(ROOT, 1, taken_tokens=(3,)))
        ]
    ),
}


@pytest.mark.parametrize("name", QUERIES)
def test_what_only_asks_costs_one_pass(name: str) -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    engine.submit(request(PROMPT, own={"strategy": QUERIES[name]}))
    drain(engine)
    assert runtime.passes == [(len(PROMPT),)]


def test_scores_of_the_prompt_cost_no_pass() -> None:
    for name, options in (("greedy", {}), ("beam", {"num_beams": 3})):
        found = bill(own={"strategy": WithPromptScores(STRATEGIES[name])}, **options)
        assert found.runtime.passes == bill(**options).runtime.passes


# --- copies -------------------------------------------------------------------------------------------------------


def reference_forks(width: int, length: int) -> list[int]:
    """Return, step by step, how many continuations share their parent with a better one in a beam search by hand."""
    probabilities = mixing_toy()._probabilities
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    forks = []
    for _ in range(length - 1):
        grown = []
        for tokens, total in beams:
            row = probabilities((*PROMPT, *tokens))
            grown += [((*tokens, token), total + math.log(p / sum(row))) for token, p in enumerate(row)]
        beams = sorted(grown, key=lambda each: -each[1])[:width]
        parents = Counter(tokens[:-1] for tokens, _ in beams)
        forks.append(sum(count - 1 for count in parents.values()))
    return forks


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_a_beam_search_forks_once_for_each_surviving_sibling(width: int) -> None:
    found = bill(num_beams=width)
    forks = [sum(isinstance(move, Fork) for move in turn.moves) for turn in found.turns]
    assert forks[1:] == reference_forks(width, LENGTH)
    assert found.runtime.num_forks == sum(forks)


FORKING = ["beam", "beam sampling", "diverse, two groups", "diverse, six groups", "constrained", "stochastic"]


@pytest.mark.parametrize("name", FORKING)
def test_every_search_goes_on_in_place_and_forks_for_further_children_alone(name: str) -> None:
    found = bill(**ONE_A_TOKEN[name][1])
    live, num_forks = {ROOT}, 0
    for turn in (turn for turn in found.turns if turn.moves):
        parents = {move.child: move.parent for move in turn.moves if isinstance(move, Fork)}
        grown = [move.branch for move in turn.moves if isinstance(move, Extend)]
        children = Counter(parents.get(branch, branch) for branch in grown)
        assert len(parents) == sum(count - 1 for count in children.values())
        dropped = {move.branch for move in turn.moves if isinstance(move, Drop)}
        assert dropped == live - children.keys()
        live, num_forks = set(grown), num_forks + len(parents)
    assert found.runtime.num_forks == num_forks > 0


@pytest.mark.parametrize(
    ("options", "forks"), [({}, 0), ({"num_return_sequences": 7}, 6), ({"best_of": 6}, 5), ({"dola_layers": "low"}, 0)]
)
def test_outputs_fork_once_from_the_prompt(options: dict[str, Any], forks: int) -> None:
    assert bill(do_sample=True, **options).runtime.num_forks == forks


# --- guesses ------------------------------------------------------------------------------------------------------


def twins() -> tuple[ToyRuntime, ToyRuntime]:
    """A model and a draft that is the same."""
    return mixing_toy(), mixing_toy()


def cousins() -> tuple[ToyRuntime, ToyRuntime]:
    """A model and a draft that is often wrong."""

    def estranged(tokens: tuple[int, ...]) -> Sequence[float]:
        found = list(plain(tokens))
        found[sum(tokens[-3:]) % 17] += 900.0 * (sum(tokens) % 3 == 0)
        return found

    plain = mixing_toy()._probabilities
    return mixing_toy(), ToyRuntime(estranged, 17)


def rounds_of(found: Bill) -> list[Counter[int]]:
    """Return how many tokens each verification checks, by output; the newest token of each is known before."""
    asked = [turn.asks for turn in found.turns[1:] if turn.asks[0].branch > DRAFT]
    return [Counter({branch: count - 1 for branch, count in Counter(a.branch for a in asks).items()}) for asks in asked]


def accepted_of(note: str | None) -> tuple[int, int]:
    """Return what a note says of one output's guesses: how many held, of how many."""
    found = re.fullmatch(r"accepted (\d+) of (\d+)", note or "accepted 0 of 0")
    assert found, note
    return int(found[1]), int(found[2])


SURE: dict[str, Any] = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 13])
@pytest.mark.parametrize("guesses", [1, 2, 5, 20])
def test_a_draft_that_is_the_model_itself_saves_all_that_can_be_saved(length: int, guesses: int) -> None:
    options = SURE | {"max_new_tokens": length, "num_assistant_tokens": guesses}
    found = bill(own={"assistant": True}, make=twins, **options)
    num_rounds = math.ceil((length - 1) / (guesses + 1))
    assert len(found.runtime.passes) == 1 + num_rounds
    assert len(found.draft.passes) == sum(each[ROOT] for each in rounds_of(found)) == length - 1 - num_rounds
    assert found.runtime.num_forks == found.draft.num_forks == 0


ROUNDS = [{}, {"num_assistant_tokens_schedule": "heuristic"}, {"assistant_confidence_threshold": 0.4}]


@pytest.mark.parametrize("changes", ROUNDS)
@pytest.mark.parametrize("sampling", [{}, DRAWS])
def test_a_round_is_one_pass_and_writes_the_guesses_that_held_and_one_more(
    changes: dict[str, Any], sampling: dict[str, Any]
) -> None:
    options = SURE | changes | sampling | {"max_new_tokens": 30, "num_assistant_tokens": 3, "seed": 4}
    found = bill(own={"assistant": True}, make=cousins, **options)
    rounds = rounds_of(found)
    assert found.runtime.passes == [(len(PROMPT),), *[(each[ROOT] + 1,) for each in rounds]]
    # What the draft model computes is verified, all of it.
    assert len(found.draft.passes) == sum(each[ROOT] for each in rounds)
    known = [(turn.commits[0].length, accepted_of(turn.note)) for turn in found.turns if turn.commits]
    assert known[0] == (1, (0, 0))
    for (before, _), (after, (accepted, guessed)), each in zip(known, known[1:], rounds, strict=False):
        assert after - before == accepted + 1 and guessed == each[ROOT]
    assert len(known) == len(rounds), "all but the last round leave something to do"
    assert 0 < sum(accepted for _, (accepted, _) in known) < sum(guessed for _, (_, guessed) in known)


def test_outputs_of_one_request_are_drafted_and_verified_side_by_side() -> None:
    options = SURE | DRAWS | {"max_new_tokens": 20, "num_assistant_tokens": 3, "num_return_sequences": 4}
    found = bill(own={"assistant": True}, make=cousins, **options)
    rounds = rounds_of(found)
    assert len(found.runtime.passes) == 1 + len(rounds)
    assert [len(each) for each in found.runtime.passes[1:]] == [len(each) for each in rounds]
    # The draft model reads the prompt in a pass of its own, and its branches fork from there.
    assert len(found.draft.passes) == 1 + sum(max(each.values()) for each in rounds)
    assert found.runtime.num_forks == found.draft.num_forks == 3


# --- in company ---------------------------------------------------------------------------------------------------


def passes_of(names: Sequence[str], prompts_per_pass: int = 512) -> tuple[int, int]:
    """Run some of the mixed company together; returns the passes of model and draft."""
    model, draft = toys()
    meeting = Meeting.at(model, draft, budget=prompts_per_pass)
    guests = company(draft, **ENDS)
    for name in names:
        meeting.welcome(name, guests[name])
    meeting.go_on()
    return meeting.engine.timing.passes, meeting.engine.timing.draft_passes


def test_a_company_takes_the_passes_of_the_slowest_alone() -> None:
    everybody = list(company(mixing_toy()))
    drafting = [name for name in everybody if "assisted" in name]
    names = drafting + sampled([name for name in everybody if name not in drafting], 24)
    apart = [passes_of([name]) for name in names]
    together, drafts = passes_of(names)
    assert together == max(passes for passes, _ in apart)
    assert max(count for _, count in apart) <= drafts < sum(count for _, count in apart)


class Curious:
    """Greedy search that asks four times about everything before it goes on."""

    name = "curious"
    space = "logits"

    def max_branches(self, config: Any) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        conversation = STRATEGIES["greedy"].run(context)
        turn = next(conversation)
        while True:
            reply = yield turn
            for ask in (FullDistribution(ROOT), Top(ROOT, 5), Score(ROOT, (1, 2))):
                yield Turn(asks=(ask,))
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("looks", [{}, {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5}])
def test_second_looks_keep_nobody_waiting(looks: dict[str, Any]) -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    options = {"max_new_tokens": LENGTH, "ignore_eos": True}
    own = {} if looks else {"strategy": Curious()}
    numbers = [engine.submit(request(PROMPT, **options)), engine.submit(request(PROMPT, own=own, **options, **looks))]
    width = 6 if looks else 1
    found = results(drain(engine))
    assert all(isinstance(found[number], tuple) for number in numbers)
    assert runtime.passes == [(len(PROMPT),) * 2, *[(1,) * (1 + width)] * (LENGTH - 1)]
