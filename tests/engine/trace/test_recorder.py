"""What the recorder says of a request equals what can be found out without it."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.toys import TABLE, Scripted, mixing_toy, toy
from tests.tracing import recorded, tokens_to
from unspool.engine.branches import Node
from unspool.engine.trace.recorder import Recorder
from unspool.records import Recording, TraceNode, TraceRow
from unspool.runtimes.toy import ToyRuntime
from unspool.types import (
    DRAFT,
    ROOT,
    Distribution,
    Drop,
    Extend,
    Fork,
    FullDistribution,
    Hypothesis,
    Keep,
    Row,
    Sample,
    Score,
    Top,
    Turn,
)

A, B, C, STOP = range(4)


def greedy_toy() -> ToyRuntime:
    """The table of Greedy's worked example."""
    return ToyRuntime({A: [0, 0.6, 0.4, 0], B: [0.3, 0, 0.7, 0], C: [0, 0, 0, 1.0]}, 4, eos_token_ids=(STOP,))


def beam_toy() -> ToyRuntime:
    """The table of BeamSearch's worked example."""
    return ToyRuntime({A: [0, 0.6, 0.4, 0], B: [0.3, 0, 0.3, 0.4], C: [0, 0.1, 0, 0.9]}, 4, eos_token_ids=(STOP,))


def paths(recording: Recording, **wanted: Any) -> dict[tuple[int, ...], TraceNode]:
    """Return the nodes of the target with these attributes, by their output tokens."""
    return {
        tokens_to(recording.nodes, node.id): node
        for node in recording.nodes
        if node.token is not None and all(getattr(node, name) == value for name, value in wanted.items())
    }


def rows_of(recording: Recording) -> list[TraceRow]:
    return [row for step in recording.steps for row in step.rows]


def test_greedy_is_one_line_with_the_probabilities_of_the_table() -> None:
    recording, (output,) = recorded(greedy_toy, [A], max_new_tokens=5)
    (traced,) = recording.outputs
    nodes = [recording.nodes[index] for index in traced.nodes]
    assert tuple(node.token for node in nodes) == output.token_ids == (B, C, STOP)
    assert [math.exp(node.logprob) for node in nodes] == pytest.approx([0.6, 0.7, 1.0])
    assert [node.ends for node in nodes] == [None, None, "eos"]
    assert (traced.score, traced.finish_reason) == (pytest.approx(math.log(0.42)), "eos")
    assert [row.entropy for row in rows_of(recording)] == pytest.approx(
        [-sum(p * math.log(p) for p in row if p) for row in ([0.6, 0.4], [0.3, 0.7], [1.0])], abs=1e-6
    )
    first = recording.steps[0].rows[0]
    assert [(each.token, each.cut_by) for each in first.best] == [(B, None), (C, None)]
    assert [each.probability for each in first.best] == pytest.approx([0.6, 0.4])
    assert [node.committed for node in nodes] == [1, 2, None]  # the last came with the end


def test_beams_are_a_tree_with_the_loser_in_it() -> None:
    recording, (output,) = recorded(beam_toy, [A], num_beams=2, length_penalty=0.0, max_new_tokens=4)
    assert output.token_ids == (C, STOP)
    found = paths(recording)
    assert {path: node.state for path, node in found.items()} == {(B,): "live", (C,): "output", (C, STOP): "output"}
    assert [math.exp(found[path].logprob) for path in ((B,), (C,), (C, STOP))] == pytest.approx([0.6, 0.4, 0.9])
    first, second = recording.steps
    assert [(each.token, each.chosen) for each in first.rows[0].candidates] == [(B, True), (C, True)]
    assert [row.node for row in second.rows] == [found[(B,)].id, found[(C,)].id]  # in order of rank
    assert [(move.kind, move.branch, move.tokens) for move in second.moves] == [
        ("extend", 0, (B,)), ("fork", 1, ()), ("extend", 1, (C,))
    ]  # fmt: skip
    best = second.rows[1].candidates[0]
    assert (best.token, best.ends, best.node) == (STOP, "eos", found[(C, STOP)].id)
    assert best.score == pytest.approx(best.logprob)


def beam_by_hand(width: int, longest: int) -> list[set[tuple[int, ...]]]:
    """Return the live beams after each step of a plain beam search over TABLE in which nothing ends but at STOP."""
    live, steps = {(): 0.0}, []
    for _ in range(longest - 1):
        going = {
            (*path, token): total + math.log(p)
            for path, total in live.items()
            for token, p in enumerate(TABLE[(0, *path)[-1]])
            if p and token != STOP
        }
        live = dict(sorted(going.items(), key=lambda item: -item[1])[:width])
        steps.append(set(live))
    return steps


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_tree_of_a_beam_search_is_that_of_one_by_hand(width: int) -> None:
    longest = 6
    recording, _ = recorded(toy, [0], num_beams=width, early_stopping="never", length_penalty=0.0,
                            max_new_tokens=longest)  # fmt: skip
    alive = beam_by_hand(width, longest)
    alive = alive[: len(recording.steps) - 1]
    written = {path for path, node in paths(recording).items() if node.step < len(recording.steps)}
    assert written == set().union(*alive)
    for path, node in paths(recording).items():
        if path not in written:
            continue
        gone = [step for step, live in enumerate(alive, 1) if step >= node.step and not _held(path, live)]
        if node.state != "output":
            assert node.dropped_at == (gone[0] if gone else None), path
            assert (node.state, node.why) == (("dropped", "beaten") if gone else ("live", None))


def _held(path: tuple[int, ...], live: set[tuple[int, ...]]) -> bool:
    return any(each[: len(path)] == path for each in live)


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    terms = [math.exp(each - top) for each in logits]
    return [each / sum(terms) for each in terms]


def test_sampling_tells_the_probability_before_and_after_the_processors() -> None:
    """Temperature 0.5 squares the odds, and top_k 3 of (.1, .2, .2, .5) cuts the first."""
    recording, (output,) = recorded(lambda: ToyRuntime(dict.fromkeys(range(4), TABLE[2]), 4), [2], temperature=0.5,
                                    top_k=3, max_new_tokens=4, seed=5)  # fmt: skip
    assert recording.processors == ("temperature", "top_k")
    squared = [p * p for p in TABLE[2][1:]]
    for step, token in zip(recording.steps, output.token_ids, strict=True):
        (row,) = step.rows
        (drawn,) = row.candidates
        assert (row.kind, drawn.token, drawn.chosen) == ("sample", token, True)
        assert drawn.probability == pytest.approx(TABLE[2][token])
        assert drawn.processed_probability == pytest.approx(squared[token - 1] / sum(squared))
        assert [(cut.processor, cut.count) for cut in row.cuts] == [("top_k", 1)]
        assert row.num_allowed == 3
        assert [each.token for each in row.best] == [3, 1, 2, 0]
        assert [each.cut_by for each in row.best] == [None, None, None, "top_k"]
        assert row.best[3].processed_probability == 0.0


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"top_k": 1}, {0: "top_k", 1: "top_k", 2: "top_k"}),
        ({"bad_words_ids": [[3]], "do_sample": True}, {3: "bad_words_ids"}),
        ({"min_p": 0.3}, {0: "min_p"}),  # 0.1 < 0.3 * 0.5 <= 0.2
        ({"top_p": 0.6}, {0: "top_p", 2: "top_p"}),
        ({"bad_words_ids": [[3]], "min_p": 0.6}, {3: "bad_words_ids", 0: "min_p"}),  # 0.1 < 0.6 * 0.2
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) and isinstance(next(iter(value)), str) else "",
)
def test_cut_tokens_are_named_with_the_processor_that_cut_them(options: Any, cut: dict[int, str]) -> None:
    recording, _ = recorded(lambda: ToyRuntime(TABLE, 4), [2], max_new_tokens=1, **options)
    (row,) = recording.steps[0].rows
    assert {each.token: each.cut_by for each in row.best if each.cut_by} == cut
    assert {each.processor: each.count for each in row.cuts} == {
        name: list(cut.values()).count(name) for name in cut.values()
    }
    assert row.num_allowed == 4 - len(cut)


def test_equal_draws_of_two_outputs_become_nodes_of_their_own() -> None:
    recording, outputs = recorded(greedy_toy, [A], do_sample=True, num_return_sequences=4, seed=3, max_new_tokens=6)
    assert len(recording.outputs) == 4
    starts = [recording.outputs[index].nodes[0] for index in range(4)]
    assert len({output.token_ids[0] for output in outputs}) < 4
    assert [row.candidates[0].node for row in recording.steps[0].rows] == starts
    assert len(set(starts)) == 4


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sample": {"temperature": 0.8, "top_p": 0.9, "num_return_sequences": 3},
    "beam": {"num_beams": 4, "num_return_sequences": 2},
    "lookahead": {"num_beams": 4, "lookahead_steps": 1},
    "beam_sample": {"num_beams": 3, "do_sample": True},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[3, 1]]},
    "stochastic_beam": {"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 2},
    "best_of": {"best_of": 3, "do_sample": True, "num_return_sequences": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "assisted": {"own": {"assistant": None}},
    "assisted_sample": {"own": {"assistant": None}, "do_sample": True, "num_return_sequences": 2},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
}


def draft_toy() -> ToyRuntime:
    """A draft that agrees with `mixing_toy` where the newest token is even, and else knows nothing."""
    target = mixing_toy(9)
    table = target._probabilities
    return ToyRuntime(
        lambda tokens: table(tokens) if tokens[-1] % 2 == 0 else [1.0] * 9, 9, eos_token_ids=(8,)
    )  # fmt: skip


def mixed(name: str, prompt: Sequence[int], seed: int) -> tuple[Recording, Any]:
    options = dict(STRATEGIES[name])
    if "own" in options:
        options["own"] = {"assistant": draft_toy()}
    return recorded(lambda: mixing_toy(9), prompt, seed=seed, max_new_tokens=8, **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_outputs_stand_in_the_tree_with_their_own_figures(name: str) -> None:
    for seed in range(4):
        recording, outputs = mixed(name, [seed, 1, 2, 1], seed)
        nodes = recording.nodes
        assert len(recording.outputs) == len(outputs)
        for index, (traced, output) in enumerate(zip(recording.outputs, outputs, strict=True)):
            assert tokens_to(nodes, traced.nodes[-1]) == output.token_ids
            path = [nodes[each] for each in traced.nodes]
            assert tuple(node.logprob for node in path) == output.logprobs
            assert tuple(node.score for node in path) == output.scores
            assert (traced.score, traced.finish_reason) == (output.score, output.finish_reason)
            assert path[-1].ends == output.finish_reason
            assert all(node.state == "output" and index in node.outputs and not node.draft for node in path)
        for node in nodes:
            assert nodes[node.id] is node
            assert (node.parent is None) == (node.token is None)
            assert node.parent is None or node.parent < node.id
            assert (node.state == "output") == bool(node.outputs)
            assert (node.dropped_at is not None) == (node.why is not None) == (node.state == "dropped")
            assert node.dropped_at is None or node.step < node.dropped_at < len(recording.steps)


@pytest.mark.parametrize("name", STRATEGIES)
def test_replaying_the_recorded_moves_gives_the_recorded_tree(name: str) -> None:
    """Branches rebuilt from the moves alone: who holds a node when, and what each row speaks of."""
    for seed in range(3):
        recording, _ = mixed(name, [seed, 1, 2, 1], seed)
        replay = Replay(recording)
        for step in recording.steps:
            before = replay.held()
            replay.apply(step.index)
            for row in step.rows:
                path = replay.branches[row.branch]
                at = len(path) - row.back
                assert row.length == at
                assert row.node == (path[at - 1] if at else replay.roots[row.draft]) if at >= 0 else row.node is None
                for each in row.candidates:
                    if each.node is not None:
                        child = recording.nodes[each.node]
                        assert (child.parent, child.token, child.draft) == (row.node, each.token, row.draft)
            lost = {recording.nodes[each] for each in before - replay.held()} - {
                recording.nodes[root] for root in replay.roots.values()
            }
            given_up = {node for node in recording.nodes if node.dropped_at == step.index and node.token is not None}
            assert given_up == {node for node in lost if node.state != "output"}
        held = replay.held()
        for node in recording.nodes:
            if node.state == "live" and node.token is not None:
                assert node.id in held


class Replay:
    """Applies recorded moves to lists of node ids. roots: the prompt's node, by whether it is the draft's."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.roots = {node.draft: node.id for node in recording.nodes if node.parent is None}
        self.branches: dict[int, list[int]] = {0: []} | ({-1: []} if True in self.roots else {})
        self.drafts = {-1}

    def held(self) -> set[int]:
        """Return every node that some live branch holds."""
        return {node for path in self.branches.values() for node in path}

    def apply(self, step: int) -> None:
        order = ("drop", "keep", "fork", "extend")
        used: set[int] = set()
        for move in sorted(self.recording.steps[step].moves, key=lambda move: order.index(move.kind)):
            if move.kind == "drop":
                del self.branches[move.branch]
            elif move.kind == "keep":
                assert move.length is not None
                del self.branches[move.branch][move.length :]
            elif move.kind == "fork":
                assert move.parent is not None
                self.branches[move.branch] = list(self.branches[move.parent])
                self.drafts |= {move.branch} if move.parent in self.drafts else set()
            else:
                for token in move.tokens:
                    used.add(self._write(move.branch, token, step, used))

    def _write(self, branch: int, token: int, step: int, used: set[int]) -> int:
        path, draft = self.branches[branch], branch in self.drafts
        parent = path[-1] if path else self.roots[draft]
        found = (
            node.id
            for node in self.recording.nodes
            if (node.parent, node.token, node.step, node.branch, node.draft) == (parent, token, step, branch, draft)
            and node.id not in used
        )
        path.append(next(found))
        return path[-1]


def test_a_draft_is_a_tree_of_its_own_and_its_guesses_are_told_from_the_models_tokens() -> None:
    recording, _ = mixed("assisted", [0, 1, 2, 1], 0)
    drafts = [node for node in recording.nodes if node.draft]
    assert [node.id for node in drafts if node.parent is None] == [next(n.id for n in recording.nodes if n.draft)]
    assert all(recording.nodes[node.parent].draft for node in drafts if node.parent is not None)
    assert all(not node.outputs for node in drafts)
    taken_back = [node for node in recording.nodes if node.state == "dropped" and not node.draft]
    assert taken_back, "no guess was rejected, so this tests nothing"
    assert all(node.why is not None and node.why.startswith("accepted") for node in taken_back)


def test_the_reason_of_a_drop_is_the_notes_where_there_is_one() -> None:
    turns = [
        Turn(asks=(Top(ROOT, 2),)),
        Turn(
            moves=(Fork(ROOT, 1), Fork(ROOT, 2), Extend(0, (1,)), Extend(1, (2,)), Extend(2, (1, 2))), asks=(Top(0, 1),)
        ),  # fmt: skip
        Turn(moves=(Drop(1), Keep(2, 1)), asks=(Top(0, 1),), note="too long"),
        Turn(moves=(Drop(2),), asks=(Top(0, 1),)),
    ]
    outcome = [Hypothesis(ROOT, 1, None, -1.0, unmet="lacks a word")]
    recording, _ = recorded(toy, [0], own={"strategy": Scripted(turns, outcome)}, max_new_tokens=4)
    by_branch = {(node.branch, node.token): (node.state, node.dropped_at, node.why) for node in recording.nodes[1:]}
    assert by_branch == {
        (0, 1): ("output", None, None),
        (1, 2): ("dropped", 2, "too long"),
        (2, 1): ("dropped", 3, "beaten"),
        (2, 2): ("dropped", 2, "too long"),
    }
    assert recording.outputs[0].unmet == "lacks a word"
    assert [step.note for step in recording.steps] == [None, None, "too long", None]


def test_a_shortened_branch_is_taken_back_without_a_note() -> None:
    turns = [
        Turn(asks=(Top(ROOT, 1),)),
        Turn(moves=(Extend(0, (1, 2)),), asks=(Sample(ROOT, back=1), Sample(ROOT))),
        Turn(moves=(Keep(0, 1), Extend(0, (0,))), asks=(Top(ROOT, 1),)),
    ]
    recording, _ = recorded(
        toy, [0], own={"strategy": Scripted(turns, [Hypothesis(ROOT, 2, None, 0.0)])}, max_new_tokens=4
    )
    found = {path: (node.state, node.why) for path, node in paths(recording).items()}
    assert found == {(1,): ("output", None), (1, 2): ("dropped", "taken back"), (1, 0): ("output", None)}
    guessed, last = recording.steps[1].rows
    assert (guessed.back, guessed.length, last.back, last.length) == (1, 1, 0, 2)


def test_positions_inside_the_prompt_have_no_node_and_no_distribution() -> None:
    strategy = Scripted([Turn(asks=(Score(ROOT, (1,), back=1), Top(ROOT, 1)))])
    recording, _ = recorded(toy, [0, 1], own={"strategy": strategy}, max_new_tokens=2)
    inside, behind = recording.steps[0].rows
    assert (inside.node, inside.length, inside.best, inside.entropy, inside.cuts) == (None, -1, (), None, ())
    assert inside.candidates[0].processed_probability == inside.candidates[0].probability == pytest.approx(0.6)
    assert (behind.node, behind.length) == (0, 0)


def test_samples_that_ended_and_were_not_returned_are_told_from_those_given_up() -> None:
    recording, outputs = recorded(toy, [0], best_of=4, do_sample=True, seed=1, max_new_tokens=30)
    ends = [node for node in recording.nodes if node.ends]
    assert sorted(node.state for node in ends) == ["finished", "finished", "finished", "output"]
    assert [tokens_to(recording.nodes, node.id) for node in ends if node.outputs] == [outputs[0].token_ids]


def test_a_strategy_that_only_asks_leaves_the_prompt_alone() -> None:
    recording, outputs = recorded(
        toy, [0], own={"strategy": Scripted([Turn(asks=(FullDistribution(ROOT),))])}, max_new_tokens=1
    )
    assert (len(recording.nodes), recording.outputs, outputs) == (1, (), ())
    assert recording.nodes[0].state == "live"
    assert recording.steps[0].rows[0].candidates == ()


def test_a_strategy_may_return_before_its_first_turn() -> None:
    recorder = Recorder([0], Node(None, -1))
    recorder.finish([Hypothesis(ROOT, 0, None, 0.0)])
    recording = recorder.trace()
    assert (recording.outputs[0].nodes, recording.nodes[0].state, recording.nodes[0].ends) == ((), "output", "strategy")


def test_nothing_of_the_size_of_the_vocabulary_is_kept() -> None:
    """A vocabulary of 5000 over 6 steps: whatever the recorder can reach holds no tensor, and no long sequence."""
    size = 5000
    row = [1.0 + (token * 7919) % 101 for token in range(size)]
    turns = [Turn(asks=(FullDistribution(ROOT), Top(ROOT, 2)))]
    turns += [Turn(moves=(Extend(ROOT, (token,)),), asks=(Top(ROOT, 2),)) for token in range(5)]
    strategy = Scripted(turns, [Hypothesis(ROOT, 5, None, 0.0)])
    recording, _ = recorded(
        lambda: ToyRuntime(lambda tokens: row, size), [0], own={"strategy": strategy}, top_k=50, max_new_tokens=6
    )
    assert recording.steps[0].rows[0].cuts[0].count == pytest.approx(size - 50, abs=50)
    seen: set[int] = set()
    waiting: list[Any] = [recording]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        assert not isinstance(each, torch.Tensor)
        assert not isinstance(each, tuple | list | dict) or len(each) < 50
        waiting += gc.get_referents(each)


def test_a_distribution_is_let_go_as_soon_as_it_was_looked_at() -> None:
    root = Node(None, -1)
    recorder = Recorder([0], root)
    turn = Turn(asks=(FullDistribution(ROOT),))
    recorder.turn(turn, {ROOT: SimpleNamespace(number=ROOT, tip=root, alive=True, length=0)})  # type: ignore[dict-item]
    logprobs = torch.tensor([0.5, 0.5]).log()
    whole = Distribution(logprobs, logprobs.clone(), torch.tensor([-1, -1]), ())
    gone = [weakref.ref(tensor) for tensor in (whole.logprobs, whole.scores, whole.cut_by)]
    recorder.reply(turn, (Row((), 0.0, distribution=whole),), (whole,))
    del whole, logprobs
    assert [each() for each in gone] == [None] * 3
    assert recorder.trace().steps[0].rows[0].entropy == pytest.approx(math.log(2))


def test_a_candidate_that_was_tried_out_and_ends_the_output_is_one_node() -> None:
    """The table of ContrastiveSearch's worked example: every candidate is written, the one that ends as well."""
    table = {A: [0, 0.6, 0.4, 0], B: [0, 0.6, 0.4, 0], C: [0.8, 0, 0, 0.2], STOP: [0, 0, 0, 1]}
    recording, _ = recorded(
        lambda: ToyRuntime(table, 4, eos_token_ids=(STOP,)), [A], penalty_alpha=0.6, top_k=2, max_new_tokens=5
    )
    states = [(tokens_to(recording.nodes, node.id), node.state, node.ends) for node in recording.nodes]
    assert states == [
        ((), "output", None),
        ((B,), "dropped", None),
        ((C,), "output", None),
        ((C, A), "live", None),
        ((C, STOP), "output", "eos"),
    ]
    similar = {row.node: row.similarity for row in rows_of(recording) if row.kind == "similarity"}
    assert [similar[node] for node in (1, 2)] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert similar[4] == pytest.approx(0.2 / math.sqrt(0.68), abs=1e-6)  # <end> against c; the other cosine is 0


def test_what_is_forked_from_a_draft_is_on_the_draft_model_whatever_its_number() -> None:
    turns = [
        Turn(asks=(Top(DRAFT, 1),)),
        Turn(moves=(Fork(DRAFT, 7), Extend(7, (1,))), asks=(Top(7, 1),)),
        Turn(asks=(Top(ROOT, 1),)),
    ]
    own = {"strategy": Scripted(turns), "assistant": toy()}
    recording, _ = recorded(toy, [0], own=own, max_new_tokens=4)
    assert [(node.branch, node.token, node.draft) for node in recording.nodes] == [
        (ROOT, None, False),
        (DRAFT, None, True),
        (7, 1, True),
    ]
    assert [row.draft for row in rows_of(recording)] == [True, True, False]
