"""Layers, the choice of a strategy, what counts as asked, and that nothing asked is ignored."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspool.config import NO_EFFECT, OPTIONS, PROCESSOR_ORDER, REFUSED, STRATEGIES, GenerationConfig, resolve
from unspool.errors import OptionError

C = GenerationConfig


def refusal(call, user=None, stored=None, **rest):
    with pytest.raises(OptionError) as caught:
        resolve(call, user, stored, **rest)
    return caught.value


# Layers


def test_the_call_overrides_the_user_the_user_the_model_and_the_model_the_default():
    stored = C(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.1)
    config = resolve({"top_p": 0.5}, C(top_p=0.7, top_k=30), stored)
    assert (config.top_p, config.top_k, config.temperature, config.min_p) == (0.5, 30, 0.6, None)
    assert config.repetition_penalty == 1.1
    assert config.requested == {"top_p", "top_k"}
    assert config.explicit == {"do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}


def test_none_in_the_call_turns_off_what_lies_below():
    stored = C(do_sample=True, temperature=0.6, top_k=20, eos_token_id=5)
    config = resolve({"top_k": None, "temperature": None}, C(top_k=30), stored)
    assert (config.top_k, config.temperature, config.eos_token_id, config.ignore_eos) == (None, None, (5,), False)
    assert config.requested == frozenset()


def test_no_end_of_sequence_token_means_that_none_ends_the_output():
    config = resolve({"eos_token_id": None}, None, C(eos_token_id=5))
    assert (config.eos_token_id, config.ignore_eos) == (None, True)
    assert resolve({"eos_token_id": []}).ignore_eos
    assert resolve({"eos_token_id": None, "ignore_eos": False}).requested == frozenset()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"top_k": 0, "do_sample": True}, None),
        ({"top_p": 1, "do_sample": True}, None),
        ({"temperature": 1.0}, None),
        ({"repetition_penalty": 1.0}, None),
        ({"suppress_tokens": []}, None),
        ({"sequence_bias": {}}, None),
        ({"num_beams": None}, 1),
        ({"xtc_threshold": None, "do_sample": True}, 0.1),
    ],
)
def test_every_way_of_saying_off_is_one_in_the_resolved_config(call, expected):
    config = resolve(call)
    assert getattr(config, next(iter(call))) == expected
    assert next(iter(call)) not in config.requested


def test_asked_is_what_the_user_gave_and_neither_off_nor_the_models_own():
    stored = C(do_sample=True, temperature=0.6)
    assert resolve({"temperature": 0.6, "top_p": 1.0, "top_k": 5}, None, stored).requested == {"top_k"}
    assert resolve({"temperature": 0.6}, None, None).requested == {"temperature"}
    assert resolve({}, C(temperature=0.6), stored).requested == frozenset()


def test_a_partial_processor_order_is_completed_in_place():
    order = resolve({"processor_order": ["top_p", "temperature"]}).processor_order
    assert order is not None
    assert sorted(order) == sorted(PROCESSOR_ORDER)
    assert order.index("top_p") == PROCESSOR_ORDER.index("temperature")
    assert order.index("temperature") == PROCESSOR_ORDER.index("top_p")
    assert [n for n in order if "top_p" != n != "temperature"] == [
        n for n in PROCESSOR_ORDER if "top_p" != n != "temperature"
    ]
    assert resolve({"processor_order": list(PROCESSOR_ORDER[::-1])}).processor_order == PROCESSOR_ORDER[::-1]
    assert resolve({}).processor_order is None


def test_a_resolved_config_stays_resolved_when_one_option_is_replaced():
    config = resolve({"do_sample": True, "echo": True}, None, C(top_p=0.9), drop_in=False)
    changed = config.replace(echo=None)
    assert changed.diff(config).keys() == {"echo"}
    assert {name for name in OPTIONS if getattr(changed, name) != getattr(config, name)} == {"echo"}
    assert (changed.max_new_tokens, changed.strategy, changed.requested) == (256, "sample", config.requested)


# Length


@pytest.mark.parametrize(
    ("call", "user", "stored", "native", "drop_in"),
    [
        ({}, {}, {}, (256, None), (20, None)),
        ({"max_new_tokens": 5}, {}, {}, (5, None), (5, None)),
        ({"max_length": 5}, {}, {}, (None, 5), (None, 5)),
        ({}, {}, {"max_length": 50}, (None, 50), (None, 50)),
        ({}, {}, {"max_length": 50, "max_new_tokens": 7}, (7, None), (7, None)),
        ({"max_new_tokens": 5}, {"max_length": 9}, {"max_length": 50}, (5, None), (5, None)),
        ({"max_length": 9}, {"max_new_tokens": 5}, {}, (None, 9), (5, None)),
        ({"max_length": 9}, {}, {"max_new_tokens": 5}, (None, 9), (5, None)),
        ({"max_new_tokens": None}, {}, {}, (None, None), (20, None)),
        ({"max_new_tokens": None}, {}, {"max_length": 50}, (None, 50), (None, 50)),
        ({"max_length": None}, {}, {"max_length": 50}, (256, None), (20, None)),
    ],
)
def test_at_most_one_limit_stands_in_the_end(call, user, stored, native, drop_in):
    for expected, rest in ((native, {}), (drop_in, {"drop_in": True})):
        config = resolve(call, C(**user), C(**stored), **rest)
        assert (config.max_new_tokens, config.max_length) == expected


def test_a_default_limit_is_not_asked_for():
    assert resolve({"max_new_tokens": None}, drop_in=True).requested == frozenset()
    assert resolve({}).requested == frozenset()


def test_two_limits_at_once_are_a_contradiction_but_in_the_drop_in_max_new_tokens_wins():
    both = {"max_length": 30, "max_new_tokens": 5}
    assert refusal(both).option == "max_length"
    assert refusal({}, C(**both)).option == "max_length"
    assert resolve(both, drop_in=True).max_new_tokens == 5
    assert refusal({"min_length": 3, "min_new_tokens": 2}).option == "min_length"
    assert resolve({"min_length": 3, "min_new_tokens": 2}, drop_in=True).min_length is None


@pytest.mark.parametrize(
    ("call", "stored", "option"),
    [
        ({"min_new_tokens": 6, "max_new_tokens": 5}, {}, "min_new_tokens"),
        ({"min_new_tokens": 257}, {}, "min_new_tokens"),
        ({"min_new_tokens": 256}, {}, None),
        ({"min_new_tokens": 5, "max_new_tokens": 5}, {}, None),
        ({"min_length": 6, "max_length": 5}, {}, "min_length"),
        ({"max_new_tokens": 5}, {"min_new_tokens": 10}, None),
    ],
)
def test_a_minimum_above_the_maximum_is_refused_where_the_minimum_is_asked(call, stored, option):
    if option is None:
        resolve(call, None, C(**stored))
    else:
        assert refusal(call, None, C(**stored)).option == option


# Greedy or sampling


@pytest.mark.parametrize(
    ("call", "stored", "strategy"),
    [
        ({}, {}, "greedy"),
        ({"seed": 5}, {}, "greedy"),
        ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "dry_multiplier": 0.8}, {}, "greedy"),
        ({"do_sample": True}, {}, "sample"),
        ({"strategy": "sample"}, {}, "sample"),
        ({"strategy": "greedy"}, {"do_sample": True}, "greedy"),
        ({"temperature": 0.7}, {}, "sample"),
        ({"temperature": 1.0}, {}, "greedy"),
        ({"temperature": 0}, {}, "greedy"),
        ({"temperature": 0, "do_sample": True}, {}, "greedy"),
        ({"temperature": 0, "strategy": "sample"}, {}, "greedy"),
        ({"temperature": 0}, {"do_sample": True, "top_p": 0.9}, "greedy"),
        ({"do_sample": True}, {"temperature": 0}, "greedy"),
        ({"top_k": 5}, {}, "sample"),
        ({"top_k": 0}, {}, "greedy"),
        ({"top_p": 0.9}, {}, "sample"),
        ({"top_p": 1.0}, {}, "greedy"),
        ({"min_p": 0.1}, {}, "sample"),
        ({"top_h": 0.5}, {}, "sample"),
        ({"typical_p": 0.9}, {}, "sample"),
        ({"epsilon_cutoff": 0.001}, {}, "sample"),
        ({"eta_cutoff": 0.001}, {}, "sample"),
        ({"top_n_sigma": 1}, {}, "sample"),
        ({"xtc_probability": 0.5}, {}, "sample"),
        ({}, {"do_sample": True, "temperature": 0.6}, "sample"),
        ({}, {"temperature": 0.6}, "greedy"),
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.6}, "greedy"),
        ({"do_sample": None}, {"do_sample": True}, "greedy"),
        ({"temperature": 0.7}, {"do_sample": False}, "sample"),
        ({"temperature": 0.6}, {"temperature": 0.6}, "sample"),
    ],
)
def test_native_rules_choose_sampling_when_a_sampling_option_is_asked(call, stored, strategy):
    config = resolve(call, None, C(**stored))
    assert config.strategy == strategy
    assert config.do_sample is (strategy == "sample")


def test_what_the_strategy_does_not_read_is_off_in_the_resolved_config():
    config = resolve({}, None, C(temperature=0.6, top_k=50, top_p=0.9, length_penalty=2.0, repetition_penalty=1.3))
    assert (config.temperature, config.top_k, config.top_p, config.length_penalty) == (None, None, None, 1.0)
    assert config.repetition_penalty == 1.3
    assert config.requested == frozenset()


def test_temperature_zero_leaves_no_temperature_behind():
    config = resolve({"temperature": 0})
    assert config.temperature is None
    assert config.strategy == "greedy"


def test_top_k_is_off_natively_and_fifty_in_the_drop_in_when_it_samples():
    assert resolve({"do_sample": True}).top_k is None
    assert resolve({"do_sample": True}, drop_in=True).top_k == 50
    assert resolve({"do_sample": True, "top_k": None}, drop_in=True).top_k is None
    assert resolve({"do_sample": True}, None, C(top_k=7), drop_in=True).top_k == 7
    assert resolve({}, drop_in=True).top_k is None


def test_the_drop_in_samples_only_when_told():
    assert resolve({}, drop_in=True).strategy == "greedy"
    assert resolve({"do_sample": True, "temperature": 0.7}, drop_in=True).strategy == "sample"
    assert refusal({"temperature": 0.7}, drop_in=True).option == "temperature"


def test_the_drop_in_takes_transformers_own_defaults_for_unasked():
    transformers = pytest.importorskip("transformers")
    defaults = transformers.GenerationConfig._get_default_generation_params()
    known = {name: value for name, value in defaults.items() if name != "max_length"}
    assert resolve(known, drop_in=True).requested == frozenset()
    assert resolve({}, drop_in=True).max_new_tokens == defaults["max_length"]
    sampling = resolve({"do_sample": True}, drop_in=True)
    explicit = resolve({**known, "do_sample": True}, drop_in=True)
    assert {n for n in OPTIONS if getattr(sampling, n) != getattr(explicit, n)} == set()


# Nothing is ignored


@pytest.mark.parametrize(
    ("call", "option", "hint"),
    [
        ({"temperature": 0.7, "do_sample": False}, "temperature", "do_sample=True"),
        ({"top_p": 0.7, "strategy": "greedy"}, "top_p", "do_sample=True"),
        ({"temperature": 0, "top_p": 0.9}, "top_p", "temperature above 0"),
        ({"length_penalty": 0.5}, "length_penalty", "num_beams above 1"),
        ({"early_stopping": True}, "early_stopping", "num_beams above 1"),
        ({"num_return_sequences": 2}, "num_return_sequences", "do_sample=True, or num_beams"),
        ({"num_return_sequences": 2, "temperature": 0}, "num_return_sequences", "do_sample=True"),
        ({"num_beam_groups": 2}, "num_beam_groups", "num_beam_groups above 1"),
        ({"diversity_penalty": 0.5}, "diversity_penalty", "num_beam_groups above 1"),
        ({"penalty_alpha": 0.6}, "penalty_alpha", "top_k above 1"),
        ({"num_assistant_tokens": 7}, "num_assistant_tokens", "prompt_lookup_num_tokens"),
        ({"xtc_threshold": 0.2, "do_sample": True}, "xtc_threshold", "set it"),
        ({"xtc_exclude": [1], "do_sample": True}, "xtc_exclude", "set it"),
        ({"dry_base": 2}, "dry_base", "set it"),
        ({"dry_sequence_breakers": ["."]}, "dry_sequence_breakers", "set it"),
        ({"penalty_scope": "output"}, "penalty_scope", "set it"),
        ({"penalty_exclude": [3]}, "penalty_exclude", "set it"),
        ({"prompt_ignore_length": 3}, "prompt_ignore_length", "set it"),
        ({"output_scores": True}, "output_scores", "logprobs"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate", "logprobs"),
        ({"do_sample": True, "strategy": "greedy"}, "do_sample", "leave `do_sample` out"),
        ({"do_sample": False, "strategy": "sample"}, "do_sample", "leave `do_sample` out"),
        ({"negative_prompt": "dull"}, "negative_prompt", "set it"),
        ({"negative_prompt": [5], "guidance_scale": 1.0}, "negative_prompt", "set it"),
        ({"lookahead_steps": 3}, "lookahead_steps", "set num_beams above 1"),
        ({"lookahead_steps": 3, "do_sample": True}, "lookahead_steps", "set num_beams above 1"),
        ({"lookahead_steps": 3, "num_beams": 4, "strategy": "stochastic_beam"}, "lookahead_steps", "beam, beam_sample"),
        (
            {"lookahead_steps": 3, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
            "lookahead_steps",
            "leave `num_beam_groups` out",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "force_words": ["cat"]},
            "num_beam_groups",
            "leave `force_words` out",
        ),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "top_p": 0.9}, "top_p", "never samples"),
        ({"force_words_ordered": True}, "force_words_ordered", "force_words_ids (or force_words)"),
        ({"force_words_ordered": True, "num_beams": 4}, "force_words_ordered", "force_words_ids (or force_words)"),
        ({"best_of_by": "mbr", "best_of": None}, "best_of_by", "set best_of"),
        ({"best_of_by": "mbr", "do_sample": True}, "best_of_by", "set best_of"),
        ({"best_of": 4, "do_sample": False}, "best_of", "do_sample=True"),
        ({"best_of": 4, "temperature": 0}, "best_of", "temperature above 0"),
        ({"best_of": 4, "num_beams": 4}, "best_of", "leave `num_beams` out"),
        ({"best_of": 4, "prompt_lookup_num_tokens": 3}, "best_of", "leave `prompt_lookup_num_tokens` out"),
        ({"best_of": 4, "penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha", "leave `best_of` out"),
        ({"best_of": 4, "strategy": "sample"}, "best_of", "name a strategy that reads it: best_of"),
        ({"penalty_alpha": 0.6, "do_sample": True}, "penalty_alpha", "with do_sample=False"),
        ({"num_beams": 4, "strategy": "greedy"}, "num_beams", "beam_sample, diverse_beam"),
        ({"xtc_threshold": 0.2}, "xtc_threshold", "do_sample=True"),
        ({"forced_eos_token_id": 3, "suppress_tokens": [3, 4]}, "forced_eos_token_id", "remove it"),
    ],
)
def test_an_asked_option_that_would_be_ignored_is_an_error_that_says_what_to_do(call, option, hint):
    error = refusal(call)
    assert error.option == option
    assert hint.replace("`", "") in error.hint.replace("`", "")


@pytest.mark.parametrize(
    ("call", "option"),
    [({"logprobs": 0}, "logprobs"), ({"echo": True}, "echo"), ({"output_scores": True}, "output_scores")],
)
def test_the_drop_in_refuses_what_it_would_not_return(call, option):
    assert refusal(call, drop_in=True).option == option
    assert resolve({"output_scores": True, "return_dict_in_generate": True}, drop_in=True).output_scores


def test_partners_are_on_wherever_they_come_from():
    assert resolve({"penalty_scope": "output"}, None, C(repetition_penalty=1.2)).penalty_scope == "output"
    assert resolve({"xtc_threshold": 0.2, "xtc_probability": 0.5}).xtc_threshold == 0.2
    assert resolve({"dry_base": 2, "dry_multiplier": 0.8}).dry_base == 2


@pytest.mark.parametrize(
    ("call", "strategy"),
    [
        ({"num_beams": 4}, "beam"),
        ({"num_beams": 4, "length_penalty": 0.5, "early_stopping": "never"}, "beam"),
        ({"num_beams": 4, "num_return_sequences": 4}, "beam"),
        ({"num_beams": 4, "temperature": 0.7}, "beam_sample"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "diverse_beam"),
        ({"num_beams": 4, "force_words_ids": [[1]]}, "constrained_beam"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive"),
        ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 3}, "assisted"),
        ({"prompt_lookup_num_tokens": 3, "temperature": 0.7}, "assisted"),
        ({"dola_layers": "low"}, "dola"),
        ({"dola_layers": "low", "do_sample": True, "top_p": 0.9}, "dola"),
        ({"best_of": 4}, "best_of"),
        ({"best_of": 4, "num_return_sequences": 4, "best_of_by": "mbr", "temperature": 0.7}, "best_of"),
        ({"best_of": 4, "dola_layers": "low"}, "best_of"),
        ({"prompt_lookup_num_tokens": 3, "dola_layers": "low"}, "assisted"),
        ({"num_beams": 4, "lookahead_steps": 2}, "beam"),
        ({"num_beams": 4, "lookahead_steps": 2, "temperature": 0.7}, "beam_sample"),
        ({"num_beams": 4, "force_words": ["cat", ["dog", "wolf"]], "force_words_ordered": True}, "constrained_beam"),
        ({"num_beams": 4, "force_words_ids": [[1, None, 2]], "force_words": ["cat"]}, "constrained_beam"),
        ({"strategy": "beam", "num_beams": 3}, "beam"),
        ({"strategy": "beam_sample", "num_beams": 3}, "beam_sample"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 3}, "stochastic_beam"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "temperature": 0.7, "top_p": 0.9}, "stochastic_beam"),
        ({"strategy": "best_of", "best_of": 3}, "best_of"),
        ({"strategy": "diverse_beam", "num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1}, "diverse_beam"),
    ],
)
def test_options_choose_the_strategy_that_transformers_would(call, strategy):
    config = resolve(call)
    assert config.strategy == strategy
    assert config.requested == call.keys() - ({"do_sample"} if not call.get("do_sample") else set())
    assert all(getattr(config, name) == getattr(C(**call), name) for name in config.requested)


def test_the_choice_agrees_with_transformers_generation_mode():
    transformers = pytest.importorskip("transformers")
    theirs = {
        "greedy_search": "greedy",
        "beam_search": "beam",
        "group_beam_search": "diverse_beam",
        "constrained_beam_search": "constrained_beam",
        "contrastive_search": "contrastive",
        "assisted_generation": "assisted",
        "dola_generation": "dola",
    }
    tables = [
        {"num_beams": beams, "do_sample": sample, **extra}
        for beams in (1, 4)
        for sample in (False, True)
        for extra in ({}, {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}, {"dola_layers": "low"})
        if beams == 1 or not extra
    ]
    groups = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": False}
    tables += [groups, {"num_beams": 4, "force_words_ids": [[1]]}]
    for call in tables:
        if call.get("penalty_alpha") and call["do_sample"]:
            continue  # transformers ignores penalty_alpha here; asked, it is an error of ours
        mode = transformers.GenerationConfig(**call).get_generation_mode().value
        assert resolve(call, drop_in=True).strategy == theirs.get(mode, mode), call


@pytest.mark.parametrize(
    ("call", "option"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5}, "num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
        ({"force_words": ["cat"]}, "force_words"),
        ({"force_words": ["cat"], "num_beams": 4, "do_sample": True}, "do_sample"),
        ({"strategy": "stochastic_beam"}, "strategy"),
        ({"strategy": "stochastic_beam", "num_beams": 1}, "strategy"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "do_sample": False}, "do_sample"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "temperature": 0}, "temperature"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 4}, "num_return_sequences"),
        ({"strategy": "stochastic_beam", "num_beams": 3, "length_penalty": 0.5}, "length_penalty"),
        ({"strategy": "best_of"}, "strategy"),
        ({"strategy": "best_of", "best_of": 3, "temperature": 0}, "temperature"),
        ({"strategy": "best_of", "best_of": 3, "do_sample": False}, "do_sample"),
        ({"best_of": 3, "num_return_sequences": 4}, "best_of"),
        ({"strategy": "beam_sample", "temperature": 0}, "strategy"),
        ({"force_words_ids": [[1]]}, "force_words_ids"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "do_sample"),
        ({"num_beams": 4, "penalty_alpha": 0.6}, "penalty_alpha"),
        ({"num_beams": 4, "prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"prompt_lookup_num_tokens": 3, "temperature": 0.7, "do_sample": False}, "temperature"),
        ({"penalty_alpha": 0.6, "top_k": 4, "temperature": 0.7}, "penalty_alpha"),
        ({"strategy": "beam"}, "strategy"),
        ({"strategy": "contrastive", "top_k": 4}, "strategy"),
        ({"strategy": "greedy", "num_beams": 4}, "num_beams"),
    ],
)
def test_contradictions_of_the_searches_are_refused(call, option):
    assert refusal(call).option == option


def test_what_does_not_fit_is_said_with_both_numbers():
    error = refusal({"best_of": 3, "num_return_sequences": 4})
    assert error.allowed == "does not fit: `best_of` (3) must be at least `num_return_sequences` (4)"
    assert error.hint == "raise `best_of` or lower `num_return_sequences`"
    assert refusal({"num_return_sequences": 4}, None, C(best_of=3, do_sample=True)).option == "num_return_sequences"
    assert "diversity_penalty" in refusal({"num_beams": 4, "num_beam_groups": 2}).hint


def test_equal_groups_of_a_stored_config_are_no_error_of_the_call():
    assert resolve({}, None, C(num_beams=4, num_beam_groups=2)).strategy == "diverse_beam"


@pytest.mark.parametrize("named", ["sample", "beam_sample"])
def test_without_draws_the_named_strategies_take_the_best(named):
    config = resolve({"strategy": named, "num_beams": 3 if "beam" in named else 1, "temperature": 0})
    assert (config.strategy, config.do_sample) == (named.replace("_sample", "").replace("sample", "greedy"), False)


NEEDED = {
    "sample": {"do_sample": True},
    "beam": {"num_beams": 4},
    "beam_sample": {"num_beams": 4, "do_sample": True},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained_beam": {"num_beams": 4, "force_words_ids": [[1]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted": {"prompt_lookup_num_tokens": 3},
    "dola": {"dola_layers": "low"},
    "best_of": {"best_of": 4},
    "stochastic_beam": {"strategy": "stochastic_beam", "num_beams": 4},
    "greedy": {},
}
"""name --> options that lead to the strategy."""


def test_the_table_of_this_file_names_every_strategy():
    missing = NEEDED.keys() ^ set(STRATEGIES)
    assert not missing, f"add the options that lead to {sorted(missing)} to NEEDED"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lookahead_steps", 2),
        ("num_beam_groups", 2),
        ("diversity_penalty", 0.5),
        ("force_words_ordered", True),
        ("length_penalty", 0.5),
        ("early_stopping", True),
        ("best_of_by", "mbr"),
        ("num_assistant_tokens", 3),
        ("num_return_sequences", 2),
    ],
)
@pytest.mark.parametrize("strategy", NEEDED)
def test_each_strategy_reads_its_own_options_and_refuses_the_others(strategy, option, value):
    call = {option: value, **NEEDED[strategy]}
    if option == "num_return_sequences" and strategy in ("assisted", "dola"):
        call["do_sample"] = True
    if strategy in OPTIONS[option].read_by:
        config = resolve(call, assistant=option == "num_assistant_tokens")
        assert (config.strategy, getattr(config, option)) == (strategy, getattr(C(**call), option))
    elif option == "num_beam_groups" and strategy == "beam":
        assert resolve(call | {"diversity_penalty": 0.5}).strategy == "diverse_beam"
    else:
        error = refusal(call)
        assert error.option in (option, "do_sample")
        assert error.hint


@pytest.mark.parametrize("strategy", NEEDED)
@pytest.mark.parametrize(
    "options", [{"dola_layers": "high"}, {"guidance_scale": 1.5}, {"guidance_scale": 1.5, "negative_prompt": [3]}]
)
def test_every_strategy_reads_what_changes_the_models_own_rows(strategy, options):
    config = resolve({**NEEDED[strategy], **options})
    assert config.strategy == ("dola" if strategy in ("greedy", "sample") and "dola_layers" in options else strategy)
    assert all(getattr(config, name) == getattr(C(**options), name) for name in options)


def test_what_shapes_a_draft_models_guesses_needs_a_draft_model():
    for name, value in {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"}.items():
        error = refusal({"prompt_lookup_num_tokens": 3, name: value})
        assert error.option == name and "together with `assistant_model`" in str(error)
        assert getattr(resolve({name: value}, assistant=True), name) == value


@pytest.mark.parametrize("options", [{"dola_layers": "low"}, {"prompt_lookup_num_tokens": 3}])
def test_several_outputs_that_nothing_draws_are_refused(options):
    error = refusal({**options, "num_return_sequences": 3})
    assert error.option == "num_return_sequences" and "do_sample=True" in error.hint
    assert resolve({**options, "num_return_sequences": 3, "do_sample": True}).num_return_sequences == 3


def test_texts_belong_to_the_native_api():
    for call in ({"num_beams": 4, "force_words": ["cat"]}, {"guidance_scale": 1.5, "negative_prompt": "dull"}):
        assert resolve(call).requested == call.keys()
        error = refusal(call, drop_in=True)
        assert error.option in ("force_words", "negative_prompt")
        assert "unspool.load(...).generate" in error.hint


def test_the_drop_in_draws_the_best_of_several_only_when_told_to_draw():
    assert refusal({"best_of": 4}, drop_in=True).option == "best_of"
    assert resolve({"best_of": 4, "do_sample": True}, drop_in=True).strategy == "best_of"
    assert resolve({}, None, C(best_of=4)).best_of is None


# Stored configs


def test_a_stored_promise_that_cannot_be_kept_raises_until_it_is_waived():
    stored = C.from_stored({"watermarking_config": {"bias": 2.0}, "use_mtp": True})
    error = refusal({}, None, stored)
    assert error.option == "watermarking_config"
    assert "stored in the model's generation_config" in str(error)
    assert resolve({"watermarking_config": None}, None, stored).strategy == "greedy"
    assert refusal({}, stored, None).option in ("watermarking_config", "use_mtp")
    assert refusal({"use_mtp": True}).option == "use_mtp"


def test_a_stored_value_out_of_range_raises_only_where_it_would_be_read():
    stored = C.from_stored({"top_p": 7.0})
    assert resolve({}, None, stored).strategy == "greedy"
    assert resolve({"top_p": 0.5}, None, stored).top_p == 0.5
    error = refusal({"do_sample": True}, None, stored)
    assert (error.option, error.given) == ("top_p", 7.0)
    assert "top_p=1.0" in error.hint


def test_a_strategy_of_the_callers_own_may_read_any_option():
    config = resolve({"length_penalty": 0.5, "temperature": 0.7, "num_beams": 3}, custom="mine")
    assert (config.strategy, config.length_penalty, config.temperature, config.num_beams) == ("mine", 0.5, 0.7, 3)
    assert refusal({"top_p": 2}, custom="mine").option == "top_p"


# Any options at all

_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
    st.sampled_from(["", "never", *STRATEGIES, "output", "low", "\n", "constant", "user", "mbr", "cat"]),
    st.lists(st.integers(-1, 9), max_size=3),
    st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
    st.dictionaries(st.tuples(st.integers(0, 9)), st.floats(-5, 5), max_size=2),
)
_good = {
    **{name: st.sampled_from([1, 2, 3]) for name, row in OPTIONS.items() if row.cli_type == "int"},
    **{name: st.floats(0.1, 0.9) for name, row in OPTIONS.items() if row.cli_type == "float"},
    **{name: st.booleans() for name, row in OPTIONS.items() if row.cli_type == "bool"},
}
_names = st.sampled_from([*OPTIONS, *NO_EFFECT, *REFUSED, "nonsense"])


@st.composite
def options(draw):
    chosen = draw(st.lists(_names, max_size=5, unique=True))
    return {name: draw(st.one_of(_values, _good.get(name, _values))) for name in chosen}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options(), options(), st.booleans())
def test_any_options_resolve_or_are_refused_by_the_name_of_one_of_them(call, below, drop_in):
    try:
        config = resolve(call, None, C.from_stored(below), drop_in=drop_in)
    except OptionError as error:
        assert error.option in call.keys() | below.keys()
        assert error.hint and error.allowed
    else:
        assert config.strategy in STRATEGIES
        assert isinstance(config.do_sample, bool)
        assert config.max_new_tokens is None or config.max_length is None
        assert config.requested <= call.keys()
        for name in config.requested - {"processor_order", "temperature"}:
            assert getattr(config, name) == getattr(C(**{name: call[name]}), name)
