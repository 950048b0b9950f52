"""The memory of hidden states, and the greatest cosine of the newest one to those before it."""

import pytest
import torch

from tests.toys import Scripted, drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.engine.branches import Node
from unspool.engine.similarity import HiddenStates
from unspool.errors import StrategyError
from unspool.types import ROOT, Drop, Extend, Fork, Keep, Similarity, Top, Turn


def greatest_cosine(rows):
    rows = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    return float((rows[:-1] @ rows[-1]).max())


def test_a_tree_of_branches_compares_each_with_its_own_path():
    generator = torch.Generator().manual_seed(2)
    draw = lambda count: torch.randn(count, 5, generator=generator)  # noqa: E731
    root = Node(None, -1)
    memory = HiddenStates(root)
    prompt = draw(4)
    memory.add_prompt(0, prompt[:3])
    memory.add_prompt(3, prompt[3:])
    memory.add_prompt(1, prompt[1:3])  # fed again: nothing new
    paths = {root: list(prompt)}
    tips = [root]
    for step in range(30):
        parent = tips[(step * 7) % len(tips)]
        children = [parent.follow(token) for token in range(3)]
        hidden = draw(3)
        memory.add(children, hidden)
        for child, row in zip(children, hidden, strict=True):
            paths[child] = [*paths[parent], row]
        found = memory.similarities([*children, children[0]])
        expected = [greatest_cosine(paths[child]) for child in [*children, children[0]]]
        assert found == pytest.approx(expected, abs=1e-6)
        tips += children
    assert memory.similarities([root]) == pytest.approx([greatest_cosine(list(prompt))], abs=1e-6)


class Asking(Scripted):
    hidden_states = True


def test_the_engine_answers_from_hidden_states_of_prompt_and_output():
    strategy = Asking(
        [
            Turn(asks=(Similarity(ROOT), Top(ROOT, 1))),
            Turn(moves=(Fork(ROOT, 1), Extend(ROOT, (4,)), Extend(1, (6, 2))), asks=(Similarity(1), Similarity(ROOT))),
            Turn(moves=(Keep(1, 1), Drop(ROOT)), asks=(Similarity(1),)),
            Turn(moves=(Extend(1, (3,)),), asks=(Similarity(1),)),
        ]
    )
    runtime = mixing_toy()
    for budget in (512, 2):
        strategy.heard = []
        engine = Engine(runtime, max_batch_tokens=budget)
        engine.submit(request((5, 3, 8), own={"strategy": strategy}))
        drain(engine)
        rows = lambda tokens: [torch.tensor(runtime._probabilities(tokens[: n + 1])) for n in range(len(tokens))]  # noqa: E731
        paths = [[(5, 3, 8)], [(5, 3, 8, 6, 2), (5, 3, 8, 4)], [(5, 3, 8, 6)], [(5, 3, 8, 6, 3)]]
        for reply, expected in zip(strategy.heard, paths, strict=True):
            found = [row.similarity for row in reply if row.similarity is not None]
            assert found == pytest.approx([greatest_cosine(rows(path)) for path in expected], abs=1e-6)
        assert not runtime.cached


@pytest.mark.parametrize(
    ("strategy", "prompt", "message"),
    [
        (Scripted([Turn(asks=(Similarity(ROOT),))]), (1, 2), "hidden_states = True"),
        (Asking([Turn(asks=(Similarity(ROOT),))]), (1,), "at least two tokens"),
        (Asking([Turn(asks=(Similarity(ROOT, back=1),))]), (1, 2, 3), "newest"),
    ],
)
def test_what_cannot_be_compared_is_the_strategys_error(strategy, prompt, message):
    engine = Engine(mixing_toy())
    number = engine.submit(request(prompt, own={"strategy": strategy}))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and message in str(error)
