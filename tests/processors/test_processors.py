"""The registry, and what holds for every processor."""

from __future__ import annotations

import pytest
import torch

from tests.processors.support import OPTIONS, VARIANTS, applied, context, named, state_of
from unspool.config import GenerationConfig
from unspool.processors import DEFAULT_ORDER, PROCESSORS

VOCAB = 40_000  # a row longer than 32,768 is one that torch would split over threads
PROMPTS = ((1, 4, 5, 2, 3, 1, 4, 5, 2), (2, 3, 1, 4, 5, 6, 5, 6), (1, 2, 3, 1, 2))
OUTPUTS = ((1, 4), (4, 5), (3, 1, 2))


def rows(seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    """Return three rows of logits, a third of the last one forbidden."""
    scores = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[3.0], [5], [4]])
    scores[2, ::3] = float("-inf")
    return scores


def mixed_states(name: str) -> list:
    states = []
    for prompt, output, setting in zip(PROMPTS, OUTPUTS, VARIANTS[name], strict=True):
        one_token = name == "forced_bos_token_id"
        request = context(
            prompt[:1] if one_token else prompt,
            vocab_size=VOCAB,
            eos=(1, 7),
            max_new_tokens=len(output) + 1,
            **named(name, setting),
        )
        states.append(state_of(name, request, () if one_token or name == "begin_suppress_tokens" else output))
    return states


def test_the_registry_holds_every_name_in_the_order_but_the_users():
    assert list(PROCESSORS) == [name for name in DEFAULT_ORDER if name != "user"]
    assert all(name == processor.name for name, processor in PROCESSORS.items())


def test_every_option_a_processor_reads_is_one_of_the_config():
    assert [name for name in OPTIONS if not hasattr(GenerationConfig(), name)] == []


@pytest.mark.parametrize("name", PROCESSORS)
def test_it_is_off_where_its_option_is_not_set(name: str):
    assert PROCESSORS[name].start(context(eos=(1,))) is None


OFF = {
    "grammar": [None],
    "sequence_bias": [{}],
    "diversity_penalty": [0.0],
    "encoder_repetition_penalty": [1.0],
    "repetition_penalty": [1.0],
    "presence_penalty": [0.0],
    "frequency_penalty": [0.0],
    "dry": [{"dry_multiplier": 0.0}],
    "no_repeat_ngram_size": [0],
    "encoder_no_repeat_ngram_size": [0],
    "bad_words_ids": [[], [[1]]],
    "min_length": [0],
    "min_new_tokens": [0],
    "suppress_tokens": [[]],
    "begin_suppress_tokens": [[]],
    "temperature": [1.0],
    "top_k": [0],
    "top_p": [1.0],
    "min_p": [0.0],
    "typical_p": [1.0],
    "epsilon_cutoff": [0.0, 1.0],
    "eta_cutoff": [0.0, 1.0],
    "top_n_sigma": [0.0, -1.0],
    "xtc": [{"xtc_probability": 0.0}],
    "remove_invalid_values": [False],
    "renormalize_logits": [False],
}


@pytest.mark.parametrize(("name", "setting"), [(name, off) for name, values in OFF.items() for off in values])
def test_it_is_off_at_its_off_value(name: str, setting: object):
    assert PROCESSORS[name].start(context(eos=(1,), **named(name, setting))) is None


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_row_comes_out_the_same_bit_for_bit_alone_and_beside_rows_with_other_parameters(name: str):
    states, scores = mixed_states(name), rows()
    together = applied(name, states, scores)
    assert not torch.equal(together, scores), "the example must show the processor at work"
    for row in range(3):
        if name in ("xtc", "diversity_penalty"):  # their keys go by row
            alone = applied(name, [states[row]] * (row + 1), scores[row : row + 1].expand(row + 1, -1))[row:]
        else:
            alone = applied(name, [states[row]], scores[row : row + 1])
        assert torch.equal(alone[0], together[row]), row


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_fork_and_its_parent_go_their_own_ways(name: str):
    processor, scores = PROCESSORS[name], rows(1, 100)
    request = context(PROMPTS[0], vocab_size=100, eos=(1,), max_new_tokens=9, **named(name, VARIANTS[name][1]))
    if name == "forced_bos_token_id":
        request = context((0,), forced_bos_token_id=3)
    parent = state_of(name, request, (1, 4))
    child = processor.fork(parent)
    for mine, its in zip((5, 2, 8, 1), (4, 4, 5, 4), strict=True):
        parent, child = processor.advance(parent, mine), processor.advance(child, its)
    expected = [state_of(name, request, (1, 4, 5, 2, 8, 1)), state_of(name, request, (1, 4, 4, 4, 5, 4))]
    assert torch.equal(applied(name, [parent, child], scores[:2]), applied(name, expected, scores[:2]))


WHOLE_SEQUENCE = {
    "sequence_bias": {},
    "repetition_penalty": {},
    "presence_penalty": {"penalty_scope": "prompt_and_output"},
    "frequency_penalty": {"penalty_scope": "prompt_and_output"},
    "dry": {},
    "no_repeat_ngram_size": {},
    "bad_words_ids": {},
    "min_length": {},
}


@pytest.mark.parametrize("setting", range(3))
@pytest.mark.parametrize("name", WHOLE_SEQUENCE)
def test_output_tokens_count_as_prompt_tokens_do_where_both_are_in_scope(name: str, setting: int):
    options = named(name, VARIANTS[name][setting]) | WHOLE_SEQUENCE[name]
    generator = torch.Generator().manual_seed(setting)
    scores = rows(2, 100)[:1]
    for length in range(1, 40):
        tokens = torch.randint(1, 7, (length,), generator=generator).tolist()
        cut = int(torch.randint(0, length, (1,), generator=generator)) + 1
        try:
            whole = state_of(name, context(tokens, eos=(1,), **options))
        except AssertionError:
            continue  # the prompt alone has min_length tokens
        stepwise = state_of(name, context(tokens[:cut], eos=(1,), **options), tokens[cut:])
        assert torch.equal(applied(name, [whole], scores), applied(name, [stepwise], scores)), (tokens, cut)


TRUNCATIONS = ["top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "xtc"]


@pytest.mark.parametrize("least", [1, 2, 5, 200])
@pytest.mark.parametrize("name", TRUNCATIONS)
def test_truncation_leaves_min_tokens_to_keep_and_never_touches_what_stays(name: str, least: int):
    scores = rows(3, 100) * 3
    for setting in VARIANTS[name]:
        state = state_of(name, context(min_tokens_to_keep=least, **named(name, setting)))
        result = applied(name, [state] * 3, scores)
        stays = result > -torch.inf
        assert (stays.sum(-1) >= (scores > -torch.inf).sum(-1).clamp(max=least)).all()
        assert torch.equal(result[stays], scores[stays])


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_truncation_acts_alike_on_logits_and_on_log_probabilities(name: str):
    scores = rows(4, 500)
    for setting in VARIANTS[name]:
        state = state_of(name, context(vocab_size=500, **named(name, setting)))
        on_logits = applied(name, [state] * 3, scores) > -torch.inf
        assert torch.equal(on_logits, applied(name, [state] * 3, scores.log_softmax(-1)) > -torch.inf)


@pytest.mark.parametrize("name", ["temperature", "renormalize_logits", *TRUNCATIONS])
def test_a_row_with_nothing_allowed_is_left_for_the_engine_to_report(name: str):
    scores = torch.full((2, 100), float("-inf"))
    scores[1, 3] = 1.0
    for setting in VARIANTS[name]:
        result = applied(name, [state_of(name, context(**named(name, setting)))] * 2, scores)
        assert not (result[0] > -torch.inf).any()
        assert (result[1] > -torch.inf).nonzero().tolist() == [[3]]
