"""transformers' own objects in a call: what they see, what is taken back, and what they stand in for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from transformers import LogitsProcessor, StoppingCriteria

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import VOCAB_SIZE, tiny_model
from unspool.engines import driver_of
from unspool.errors import OptionError
from unspool.strategies import Greedy

MODEL = tiny_model("llama", seed=5)
PADDED = torch.tensor([[0, 0, 0, 11, 12], [13, 14, 15, 16, 17], [0, 18, 19, 20, 21]])
MASK = (PADDED != 0).long()
ENDS = [*range(30, 45)]
BEAMS = {"num_beams": 3, "num_return_sequences": 2}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "best token drawn": {"do_sample": True, "top_k": 1},
    "several outputs": {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    "beams": BEAMS,
}


class Spy(LogitsProcessor):
    """Keeps what it sees, and asks for a change that depends on all of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.seen.append((input_ids.clone(), scores.clone()))
        scores[:, input_ids[0, -1]] -= 3.0
        return scores + torch.arange(len(scores))[:, None].eq(torch.arange(scores.shape[1]) % 7) * 1.5


class Watch(StoppingCriteria):
    """Keeps what it sees, and ends all rows once any has written a token of `stops`."""

    def __init__(self, stops: Callable[[torch.Tensor], torch.Tensor] = lambda tokens: tokens < 0) -> None:
        self.seen: list[tuple[torch.Tensor, Any]] = []
        self._stops = stops

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.seen.append((input_ids.clone(), scores))
        return torch.full((len(input_ids),), bool(self._stops(input_ids[:, -1]).any()))


def both(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the drop-in and transformers return. options: values, or functions that make one for each."""
    found = []
    for generate in (lambda *args, **given: unspool.generate(MODEL, *args, **given), MODEL.generate):
        given = {name: value() if callable(value) else value for name, value in options.items()}
        # transformers' beams fill up with the ending token where the padding token is 0.
        found.append(generate(PADDED, attention_mask=MASK, **{"max_new_tokens": 10, "pad_token_id": 1, **given}))
    return found[0], found[1]


def refusal(**options: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        unspool.generate(MODEL, PADDED, attention_mask=MASK, **options)
    return caught.value


# --- processors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos_token_id", [None, ENDS], ids=["full", "ending"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_processor_sees_the_batch_of_transformers_at_every_step(strategy: str, eos_token_id: Any):
    spies: list[Spy] = []
    found, expected = both(
        logits_processor=lambda: [spies.append(Spy()) or spies[-1]], eos_token_id=eos_token_id, **STRATEGIES[strategy]
    )
    assert found.equal(expected)
    steps = list(zip(spies[0].seen, spies[1].seen, strict=True))
    assert len(steps) > 1
    live = torch.ones(len(steps[0][0][0]), dtype=torch.bool)
    for (ids, scores), (their_ids, their_scores) in steps:
        assert scores.dtype == their_scores.dtype and scores.shape == their_scores.shape
        live &= ~torch.isin(their_ids[:, -1], torch.tensor(ENDS)) if eos_token_id and strategy != "beams" else True
        if strategy != "beams" or eos_token_id is None:
            assert ids.equal(their_ids)
            torch.testing.assert_close(scores[live], their_scores[live], rtol=1e-4, atol=1e-4)


def test_what_a_processor_keeps_is_its_own():
    class Keep(LogitsProcessor):
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
            self.kept.append((scores, scores.clone()))
            return scores.clone()

    unspool.generate(
        MODEL, PADDED, attention_mask=MASK, max_new_tokens=4, logits_processor=[Keep()], do_sample=True, top_k=3
    )
    assert all(scores.equal(copy) and not scores.is_inference() for scores, copy in Keep.kept)


def test_rows_that_have_ended_stay_as_pads_with_uniform_scores():
    spy = Spy()
    unspool.generate(
        MODEL, PADDED, attention_mask=MASK, max_new_tokens=10, pad_token_id=1, eos_token_id=ENDS, logits_processor=[spy]
    )
    ids, scores = spy.seen[-1]
    ended = torch.isin(ids[:, 5:], torch.tensor(ENDS)).any(1)
    assert ended.any() and not ended.all() and (ids[ended, -1] == 1).any()
    torch.testing.assert_close(scores[ended].exp().sum(1), torch.ones(int(ended.sum())))
    assert all(len(row.unique()) == 1 for row in scores[ended])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_processor_of_a_class_that_an_option_asks_for_replaces_ours(strategy: str):
    options = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2, **STRATEGIES[strategy]}
    given = {"logits_processor": lambda: [transformers.RepetitionPenaltyLogitsProcessor(3.0)]}
    prompts = {"max_new_tokens": 12}
    found = unspool.generate(MODEL, PADDED[1:2], logits_processor=given["logits_processor"](), **options, **prompts)
    expected = MODEL.generate(PADDED[1:2], logits_processor=given["logits_processor"](), **options, **prompts)
    assert found.equal(expected)
    assert not found.equal(unspool.generate(MODEL, PADDED[1:2], **options, **prompts))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, transformers.RepetitionPenaltyLogitsProcessor(3.0)),
        ({"suppress_tokens": [60]}, transformers.SuppressTokensLogitsProcessor([*range(40)])),
        ({"min_length": 9}, transformers.MinLengthLogitsProcessor(7, ENDS)),
        ({"min_new_tokens": 4}, transformers.MinLengthLogitsProcessor(12, ENDS)),
        ({"min_new_tokens": 4}, transformers.MinNewTokensLengthLogitsProcessor(5, 6, ENDS)),
        ({"forced_eos_token_id": 30}, transformers.ForcedEOSTokenLogitsProcessor(15, 31)),
        ({"do_sample": True, "top_k": 1}, transformers.TemperatureLogitsWarper(0.5)),
        ({"do_sample": True, "temperature": 1e-4, "top_k": 5}, transformers.TopKLogitsWarper(2)),
        ({"sequence_bias": [[[50], 4.0]]}, transformers.SequenceBiasLogitsProcessor([[[51], 9.0]])),
        ({"num_beams": 2, "bad_words_ids": [[50]]}, transformers.NoBadWordsLogitsProcessor([[51], [30]], 2)),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, LogitsProcessor) else str(each),
)
def test_what_replaces_ours_and_what_comes_besides_is_as_in_transformers(options: dict[str, Any], given: Any):
    found, expected = both(logits_processor=[given], eos_token_id=ENDS, **options)
    assert found.equal(expected)


def test_guidance_of_the_callers_own_replaces_ours():
    make = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor
    negative = torch.tensor([[5, 6]]).expand(3, 2)
    found, expected = both(logits_processor=lambda: [make(2.5, MODEL, negative.clone())], guidance_scale=1.5)
    assert found.equal(expected)
    assert not found.equal(both(guidance_scale=1.5)[0])


def test_ours_and_theirs_work_together():
    class Only:
        name = "only"

        def start(self, context: Any) -> int:
            return 55

        def advance(self, state: int, token: int) -> int:
            return state

        def fork(self, state: int) -> int:
            return state

        def apply(self, states: Any, scores: torch.Tensor, keys: Any) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([55, 56]), 0.0)

    found = unspool.generate(
        MODEL, PADDED, max_new_tokens=2, processors=[Only()],
        logits_processor=[transformers.SuppressTokensLogitsProcessor([55])],
    )  # fmt: skip
    assert (found[:, 5:] == 56).all()


@pytest.mark.parametrize(
    ("returned", "words"), [(None, "got None"), (torch.zeros(2, 2), r"\(2, 2\)")], ids=["nothing", "another shape"]
)
def test_a_processor_that_returns_no_scores_is_named(returned: Any, words: str):
    class Forgetful(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return returned

    with pytest.raises(OptionError, match=f"(?s)logits_processor.*{words}.*Forgetful"):
        unspool.generate(MODEL, PADDED, logits_processor=[Forgetful()])


def test_an_error_of_an_object_is_raised_and_leaves_nothing_behind():
    class Once(LogitsProcessor):
        """Raises the second time it is called, and never again."""

        calls = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                raise KeyError("once")
            return scores

    class OnceStopping(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return Once.__call__(self, input_ids, torch.zeros(len(input_ids), dtype=torch.bool))  # type: ignore[arg-type]

    for given in ({"logits_processor": [Once()]}, {"stopping_criteria": [OnceStopping()]}):
        with pytest.raises(KeyError, match="once"):
            unspool.generate(MODEL, PADDED, attention_mask=MASK, max_new_tokens=5, **given)
    engine = driver_of(MODEL).engine
    engine.check()
    assert engine.idle


# --- prefix_allowed_tokens_fn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["greedy", "best token drawn", "beams"])
@pytest.mark.parametrize("options", [{}, {"forced_eos_token_id": 30}, {"bad_words_ids": [[50]]}], ids=str)
def test_the_function_names_the_allowed_tokens(strategy: str, options: dict[str, Any]):
    def allowed(batch_id: int, input_ids: torch.Tensor) -> list[int]:
        assert input_ids.ndim == 1 and input_ids[:5].equal(PADDED[batch_id])
        log_norm_offset = batch_id + int(input_ids[-1])
        if strategy != "beams" and log_norm_offset % 5 == 0:
            return [50]  # which may be forbidden, and is allowed nevertheless
        return [token for token in range(VOCAB_SIZE) if (token + log_norm_offset) % 4 == 0]

    found, expected = both(
        prefix_allowed_tokens_fn=lambda: allowed, eos_token_id=ENDS, **options, **STRATEGIES[strategy]
    )
    assert found.equal(expected)


def test_the_function_gets_the_index_of_the_prompt_whatever_outputs_that_has():
    seen = set()

    def allowed(batch_id: int, input_ids: torch.Tensor) -> list[int]:
        seen.add(batch_id)
        return [40 + batch_id]

    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 2, "eos_token_id": None}
    found = unspool.generate(MODEL, PADDED, attention_mask=MASK, prefix_allowed_tokens_fn=allowed, **options)
    assert seen == {0, 1, 2}
    assert found[:, 5:].tolist() == [[40, 40]] * 3 + [[41, 41]] * 3 + [[42, 42]] * 3


def test_a_function_that_allows_nothing_is_refused_with_the_prompt():
    with pytest.raises(OptionError, match="prompt 1"):
        unspool.generate(MODEL, PADDED, prefix_allowed_tokens_fn=lambda batch_id, ids: [] if batch_id == 1 else [5])


# --- criteria ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_criterion_sees_the_batch_of_transformers_at_every_step(strategy: str):
    watches: list[Watch] = []
    found, expected = both(
        stopping_criteria=lambda: [watches.append(Watch()) or watches[-1]], eos_token_id=None, **STRATEGIES[strategy]
    )
    assert found.equal(expected)
    assert len(watches[0].seen) == len(watches[1].seen) == 10
    for (ids, scores), (their_ids, their_scores) in zip(watches[0].seen, watches[1].seen, strict=True):
        assert ids.equal(their_ids) and scores is their_scores is None


@pytest.mark.parametrize("eos_token_id", [[2], ENDS], ids=["full", "ending"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("token", range(5))
def test_any_row_may_end_all(strategy: str, eos_token_id: Any, token: int):
    found, expected = both(
        stopping_criteria=lambda: [Watch(lambda tokens: tokens % 37 == token + 4)],
        eos_token_id=eos_token_id,
        **STRATEGIES[strategy],
    )
    assert found.equal(expected)


@pytest.mark.parametrize("strategy", ["greedy", "beams"])
def test_a_criterion_gets_the_scores_that_the_call_wants(strategy: str):
    watches: list[Watch] = []
    both(
        stopping_criteria=lambda: [watches.append(Watch()) or watches[-1]],
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **STRATEGIES[strategy],
    )
    for (_, scores), (_, theirs) in zip(watches[0].seen, watches[1].seen, strict=True):
        assert len(scores) == len(theirs)
        for one, other in zip(scores, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.MaxLengthCriteria(9),
        lambda: transformers.MaxLengthCriteria(2),
        lambda: transformers.EosTokenCriteria(eos_token_id=[*range(50, 70)]),
        lambda: transformers.MaxTimeCriteria(1e9),
        lambda: transformers.MaxTimeCriteria(1.0, initial_timestamp=time.time() - 9.0),
    ],
    ids=["length", "short length", "end", "time", "time is up"],
)
def test_criteria_of_transformers_own_classes(strategy: str, make: Callable[[], Any]):
    found, expected = both(stopping_criteria=lambda: [make()], **STRATEGIES[strategy])
    assert found.equal(expected)


def test_a_longer_length_replaces_the_shorter_one():
    found, expected = both(stopping_criteria=lambda: [transformers.MaxLengthCriteria(30)], max_new_tokens=4)
    assert found.equal(expected) and found.shape[1] == 30


def test_stop_strings_as_a_criterion():
    tokenizer, model = byte_level(), tiny_model("llama", vocab_size=420, seed=5)
    ids = tokenizer(["Once upon"], return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=12)[0, ids.shape[1] :][2:8])
    stop = next(letter for letter in text if letter.isascii())
    given = {"stopping_criteria": [transformers.StopStringCriteria(tokenizer, [stop])], "max_new_tokens": 12}
    found = unspool.generate(model, ids, **given)
    assert found.equal(model.generate(ids, **given)) and found.shape[1] < ids.shape[1] + 12


def test_a_row_that_a_criterion_ends_is_padded_even_where_nothing_else_ends_one():
    """transformers writes on in such a row until all are done."""

    class First(StoppingCriteria):
        def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
            return torch.arange(len(input_ids)) == 0

    found, expected = both(stopping_criteria=lambda: [First()], eos_token_id=None, max_new_tokens=4)
    assert (found[0, 6:] == 1).all() and not (expected[0, 6:] == 1).any()
    assert found[1:].equal(expected[1:]) and found[0, :6].equal(expected[0, :6])


def test_a_criterion_that_returns_something_else_is_named():
    class Odd(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.zeros(2, dtype=torch.bool)

    with pytest.raises(OptionError, match="(?s)stopping_criteria.*3 rows.*Odd"):
        unspool.generate(MODEL, PADDED, attention_mask=MASK, stopping_criteria=[Odd()])


# --- other strategies, and company ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 3, "force_words_ids": [[61]]},
        {"num_beams": 3, "do_sample": True, "seed": 1},
        {"strategy": "stochastic_beam", "num_beams": 3, "do_sample": True, "seed": 1},
        {"best_of": 3, "do_sample": True, "seed": 1},
        {"dola_layers": "low"},
    ],
    ids=str,
)
def test_every_strategy_lets_objects_take_part(options: dict[str, Any]):
    """An object that does what an option does leads to the same tokens as the option, under every strategy."""
    plain = {"max_new_tokens": 9, "pad_token_id": 1, "eos_token_id": ENDS, **options}
    by_option = unspool.generate(MODEL, PADDED, attention_mask=MASK, suppress_tokens=[*range(60, 97, 2)], **plain)
    suppress = transformers.SuppressTokensLogitsProcessor([*range(60, 97, 2)])
    stop = transformers.EosTokenCriteria(torch.tensor(ENDS))
    found = unspool.generate(
        MODEL, PADDED, attention_mask=MASK, logits_processor=[suppress], stopping_criteria=[stop], **plain
    )
    assert found.equal(by_option)

    class Ends(StoppingCriteria):
        def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
            return torch.isin(input_ids[:, -1], torch.tensor([70, 71, 72, 73, 74, 75]))

    ends = unspool.generate(MODEL, PADDED, attention_mask=MASK, stopping_criteria=[Ends()], **plain)
    for row in ends[:, 5:].tolist():
        assert not set(row[:-1]) & {70, 71, 72, 73, 74, 75} or row[-1] == 1


def test_a_draft_model_and_objects_together():
    draft = tiny_model("llama", seed=6)
    given = {"max_new_tokens": 12, "logits_processor": [transformers.SuppressTokensLogitsProcessor([*range(0, 97, 3)])]}
    for ids in (PADDED[1:2], PADDED):
        assert unspool.generate(MODEL, ids, assistant_model=draft, **given).equal(unspool.generate(MODEL, ids, **given))


def test_threads_keep_their_objects_apart():
    def run(seed: int) -> torch.Tensor:
        ids = torch.randint(3, VOCAB_SIZE, (2, 4), generator=torch.Generator().manual_seed(seed))
        given = {"logits_processor": [Spy()], "stopping_criteria": [Watch(lambda tokens: tokens == seed + 20)]}
        return unspool.generate(MODEL, ids, max_new_tokens=15, pad_token_id=1, **BEAMS if seed % 2 else {}, **given)

    alone = [run(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert all(one.equal(other) for one, other in zip(pool.map(run, range(6)), alone, strict=True))


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"])
def test_a_strategy_of_the_callers_own_takes_none(name: str):
    given = {"logits_processor": [Spy()], "stopping_criteria": [Watch()], "prefix_allowed_tokens_fn": print}[name]
    assert refusal(strategy=Greedy(), **{name: given}).option == name


def test_what_cannot_be_found_for_all_outputs_is_warned_of():
    options: dict[str, Any] = {"num_beams": 2, "force_words_ids": [[60]], "suppress_tokens": [60], "max_new_tokens": 3}
    with pytest.warns(UserWarning, match=r"row 0: the forced word \[60\] is missing.*row 1: "):
        unspool.generate(MODEL, PADDED[:2], attention_mask=MASK[:2], **options)
