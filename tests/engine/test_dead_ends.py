"""Branches behind which everything is forbidden, and other ways in which a part of a request fails."""

import numpy as np
import pytest
import torch

from tests.toys import drain, mixing_toy, request, results, toy
from unspool import LanguageModel
from unspool.engine import Engine
from unspool.errors import NumericsError, OptionError, StrategyError
from unspool.protocols import Criterion
from unspool.runtimes.toy import ToyRuntime

# Token 2 can only be followed by 3, which the options of these tests forbid.
TABLE = {0: [0, 0.4, 0.6, 0], 1: [0, 0.9, 0.1, 0], 2: [0, 0, 0, 1.0], 3: [0.5, 0.5, 0, 0]}
BANNED = {"bad_words_ids": [[2, 3]], "max_new_tokens": 4}


def outcome(runtime, wanted):
    engine = Engine(runtime)
    number = engine.submit(wanted)
    found = results(drain(engine))[number]
    assert not runtime.cached
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"penalty_alpha": 0.5, "top_k": 2},
        {"num_beams": 2, "force_words_ids": [[1]]},
        {"num_beams": 3, "lookahead_steps": 2},
    ],
)
def test_a_search_goes_on_without_a_branch_that_cannot(options):
    outputs = outcome(ToyRuntime(TABLE, 4), request([0], **options, **BANNED))
    assert isinstance(outputs, tuple), outputs
    assert outputs[0].token_ids[:3] == (1, 1, 1)  # the last one may be 2: nothing must follow


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 2}])
def test_where_nothing_can_go_on_the_request_fails_and_says_where(options):
    error = outcome(ToyRuntime(TABLE, 4), request([2], **options, **BANNED))
    assert isinstance(error, NumericsError) and "every token is forbidden" in str(error)


def test_forced_words_behind_a_dead_end_come_with_their_reason():
    only = {0: [0, 0, 1.0, 0], 1: [1.0, 0, 0, 0], 2: [0, 0, 0, 1.0], 3: [1.0, 0, 0, 0]}
    (output,) = outcome(ToyRuntime(only, 4), request([0], num_beams=2, force_words_ids=[[3]], **BANNED))
    assert output.token_ids == (2,)
    assert "token 3 forbidden by bad_words_ids" in output.unmet


def test_a_scale_of_nothing_leaves_the_negative_prompt_alone():
    cfg_logits = outcome(
        mixing_toy(), request([5, 3], own={"negative_prompt": (2, 9)}, guidance_scale=0.0, max_new_tokens=7)
    )
    plain = outcome(mixing_toy(), request([2, 9], max_new_tokens=7))
    assert [output.token_ids for output in cfg_logits] == [output.token_ids for output in plain]


def test_a_model_that_drafts_for_itself_takes_a_step_a_round():
    runtime = mixing_toy()
    engine = Engine(runtime)
    wanted = request([5, 3], own={"assistant": runtime}, max_new_tokens=30, ignore_eos=True)
    number = engine.submit(wanted)
    (output,) = results(drain(engine))[number]
    assert output.token_ids == outcome(mixing_toy(), request([5, 3], max_new_tokens=30, ignore_eos=True))[0].token_ids
    assert engine.timing.steps >= engine.timing.passes > 3 and engine.timing.draft_passes > 3
    assert not runtime.cached


class Careless:
    name = "careless"

    def __init__(self, answer):
        self.answer = answer

    def start(self, context):
        return 0

    def advance(self, state, token):
        return 0

    def fork(self, state):
        return 0

    def apply(self, states, scores, keys):
        return self.answer(scores)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda scores: None, "None"),
        (lambda scores: scores[:, :3], r"torch.float32 of shape \(1, 3\)"),
        (lambda scores: scores > 0, "torch.bool of shape"),
        (lambda scores: scores.long(), "torch.int64 of shape"),
    ],
)
def test_a_processor_that_returns_something_else_is_told_so(answer, got):
    engine = Engine(toy())
    number = engine.submit(request([0], own={"processors": (Careless(answer),)}))
    other = engine.submit(request([0], max_new_tokens=3))
    found = results(drain(engine))
    assert isinstance(found[other], tuple)
    message = rf"processor careless must return floating-point scores of shape \(1, 4\) \(position 1\), got {got}"
    with pytest.raises(StrategyError, match=message):
        raise found[number]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "do_sample": True}, {"num_beams": 2}])
def test_a_processor_that_leaves_no_numbers_is_named(value, options):
    engine = Engine(toy())
    number = engine.submit(request([0], own={"processors": (Careless(lambda scores: scores + value),)}, **options))
    other = engine.submit(request([0], max_new_tokens=3))
    found = results(drain(engine))
    assert isinstance(found[other], tuple)
    with pytest.raises(NumericsError, match=r"position 1: .* NaN or \+inf after the processor careless"):
        raise found[number]


class Undecided(Criterion):
    name = "undecided"

    def __init__(self, said):
        self.said = said

    def start(self, context):
        return 0

    def advance(self, state, token):
        return state + 1

    def ends(self, state, token):
        return self.said if state else False


@pytest.mark.parametrize("said", [None, 1, "yes", 0.0, torch.tensor([True, False]), torch.tensor(1)], ids=str)
def test_a_criterion_that_says_neither_true_nor_false_is_named(said):
    engine = Engine(toy())
    number = engine.submit(request([0], own={"criteria": (Undecided(said),)}, max_new_tokens=3, ignore_eos=True))
    other = engine.submit(request([0], max_new_tokens=3))
    found = results(drain(engine))
    assert isinstance(found[other], tuple)
    with pytest.raises(StrategyError, match=r"criterion undecided must return True or False \(new token 2\), got"):
        raise found[number]


@pytest.mark.parametrize("said", [True, np.bool_(True), torch.tensor(True), torch.tensor([True])], ids=str)
def test_booleans_of_numpy_and_pytorch_are_verdicts(said):
    (output,) = outcome(toy(), request([0], own={"criteria": (Undecided(said),)}, max_new_tokens=3, ignore_eos=True))
    assert (output.finish_reason, len(output.token_ids)) == ("undecided", 2)


class Full(ToyRuntime):
    """Has no room for the third fork."""

    def fork(self, seq, child):
        if self.num_forks == 2:
            raise MemoryError("no room")
        super().fork(seq, child)


def test_a_fork_that_fails_halfway_leaves_nothing_behind():
    runtime = Full(lambda tokens: [1.0, 2.0, 3.0, 4.0], 4)
    error = outcome(
        runtime, request([0], own={"negative_prompt": (1,)}, guidance_scale=2.0, num_beams=3, max_new_tokens=5)
    )
    assert isinstance(error, MemoryError)


@pytest.mark.parametrize(
    "options", [{"best_of": 3}, {"num_beams": 2, "length_penalty": 0.3}, {"prompt_lookup_num_tokens": 2}]
)
def test_what_says_nothing_about_the_next_token_is_refused(options):
    lm = LanguageModel(toy())
    with pytest.raises(OptionError, match="does not change the next token"):
        lm.next_tokens([0], **options)
    with pytest.raises(OptionError, match="assistant_model.*does not change the next token"):
        lm.next_tokens([0], assistant_model=toy())


def test_what_was_asked_as_text_is_told_as_text():
    class Letters:
        def __call__(self, text, **options):
            return {"input_ids": [" abc".index(letter) for letter in text if letter in " abc"]}

        def decode(self, ids, **options):
            return "".join(" abc"[token] for token in ids)

        def __len__(self):
            return 4

        def get_vocab(self):
            return {letter: token for token, letter in enumerate(" abc")}

    lm = LanguageModel(ToyRuntime(lambda tokens: [1.0, 2.0, 3.0, 4.0], 4), Letters())
    found = lm.generate("a", num_beams=2, force_words=["b"], max_new_tokens=4)
    assert found.config.force_words == ("b",) and "b" in found.text
