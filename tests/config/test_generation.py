"""What each option accepts and refuses, both ends of every range side by side."""

import copy
import inspect
import json
import math
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest

from unspool.config import (
    GROUPS,
    NO_EFFECT,
    OPTIONS,
    REFUSED,
    STRATEGIES,
    UNSET,
    GenerationConfig,
    json_schema,
    option_status,
    resolve,
)
from unspool.errors import OptionError
from unspool.options.grammar_kinds import JsonSchema

TINY = 1e-12
NAN, INF = math.nan, math.inf

# option: (accepted, refused)
NUMBERS = {
    "max_new_tokens": ([1, 10**9], [0, -1, 1.0, True, "5", [5]]),
    "max_length": ([1], [0, -1, 2.5, True]),
    "min_new_tokens": ([0, 7], [-1, 0.5, False]),
    "min_length": ([0, 7], [-1, False]),
    "max_time": ([TINY, 3, 2.5], [0, -1, INF, NAN, True, "1s"]),
    "num_return_sequences": ([1, 16], [0, -1, 1.5, True]),
    "num_beams": ([1, 4], [0, True]),
    "num_beam_groups": ([1, 4], [0]),
    "lookahead_steps": ([1, 8], [0, -1, 1.5, True]),
    "best_of": ([1, 16], [0, -1, 2.0, True, "4"]),
    "length_penalty": ([-2, 0.0, 2.5], [INF, -INF, NAN, True]),
    "diversity_penalty": ([0, 1.5], [-TINY, NAN]),
    "penalty_alpha": ([0, 0.6, 1], [-TINY, 1 + 1e-9]),
    "temperature": ([0, TINY, 1, 100.0], [-TINY, INF, NAN, True, "warm"]),
    "top_k": ([0, 1, 50], [-1, 5.0, True]),
    "top_p": ([TINY, 0.9, 1], [0, -0.1, 1 + 1e-9, 1.5, NAN]),
    "min_p": ([0, 0.05, 1], [-TINY, 1 + 1e-9, NAN]),
    "top_h": ([TINY, 1], [0, 1 + 1e-9]),
    "typical_p": ([TINY, 1], [0, 1 + 1e-9]),
    "epsilon_cutoff": ([0, 0.5, 1 - 1e-9], [-TINY, 1]),
    "eta_cutoff": ([0, 0.5, 1 - 1e-9], [-TINY, 1]),
    "top_n_sigma": ([TINY, 1, 5.5], [0, -1, INF]),
    "xtc_probability": ([0, 0.5, 1], [-TINY, 1 + 1e-9]),
    "xtc_threshold": ([0, 0.1, 1], [-TINY, 1 + 1e-9]),
    "repetition_penalty": ([TINY, 1, 1.3], [0, -1, NAN]),
    "presence_penalty": ([-2, 0, 2], [INF, NAN, True]),
    "frequency_penalty": ([-2, 0, 2], [INF, NAN, True]),
    "prompt_ignore_length": ([0, 5], [-1]),
    "no_repeat_ngram_size": ([0, 3], [-1, 2.0]),
    "dry_multiplier": ([0, 0.8], [-TINY]),
    "dry_base": ([1, 1.75], [1 - 1e-9]),
    "dry_allowed_length": ([1, 2], [0]),
    "dry_range": ([0, 512], [-1]),
    "guidance_scale": ([0, 1.5], [-TINY]),
    "forced_bos_token_id": ([0, 5], [-1, [5], True]),
    "bos_token_id": ([0], [-1]),
    "pad_token_id": ([0], [-1]),
    "logprobs": ([0, 5], [-1, True]),
    "prompt_lookup_num_tokens": ([1], [0]),
    "max_matching_ngram_size": ([1], [0]),
    "num_assistant_tokens": ([1], [0]),
    "assistant_confidence_threshold": ([0, 1], [-TINY, 1 + 1e-9]),
    "encoder_repetition_penalty": ([TINY, 1.5], [0]),
    "encoder_no_repeat_ngram_size": ([0, 2], [-1]),
}

# option: (given and what it becomes, refused)
STRUCTURES = {
    "do_sample": ([(True, True), (False, False)], [1, "yes"]),
    "renormalize_logits": ([(True, True)], [0, "no"]),
    "remove_invalid_values": ([(True, True)], [0, "no"]),
    "echo": ([(True, True)], [1]),
    "ignore_eos": ([(True, True)], [1]),
    "batch_invariant": ([(True, True)], [1]),
    "return_dict_in_generate": ([(True, True)], [1]),
    "output_scores": ([(True, True)], [1]),
    "output_logits": ([(True, True)], [1]),
    "output_attentions": ([(True, True)], [1]),
    "output_hidden_states": ([(True, True)], [1]),
    "early_stopping": ([(True, True), ("never", "never")], [1, 0, "always"]),
    "strategy": ([(name, name) for name in STRATEGIES], ["fast", 1, ["greedy"]]),
    "penalty_scope": ([("output", "output"), ("prompt_and_output", "prompt_and_output")], ["prompt", 1]),
    "num_assistant_tokens_schedule": ([("constant", "constant")], ["fast"]),
    "stop_strings": ([("\n", ("\n",)), (["a", "b"], ("a", "b")), ([], ())], ["", [""], 5, [5]]),
    "seed_prompt_tokens": ([(0, 0), (5, 5)], [-1, 1.0, True, "7"]),
    "seed": ([(5, 5), (-3, -3), (2**80, 2**80), ([1, 2], (1, 2))], [1.0, True, [], [True], "7"]),
    "eos_token_id": ([(5, (5,)), ([5, 6], (5, 6)), ({6, 5}, (5, 6)), ([], ())], [-1, [-1], True, "5", {5, "a"}]),
    "forced_eos_token_id": ([(5, (5,)), ([5, 6], (5, 6))], [-1, 1.5]),
    "suppress_tokens": ([([1, 2], (1, 2)), (1, (1,))], [[-1], ["a"], {1: 2}]),
    "begin_suppress_tokens": ([([1, 2], (1, 2))], [[-1]]),
    "penalty_exclude": ([([1, 2], (1, 2))], [[1.5]]),
    "xtc_exclude": ([([1, 2], (1, 2))], [[1.5]]),
    "decoder_start_token_id": ([(5, (5,)), ([5, 6], (5, 6))], [-1]),
    "bad_words_ids": ([([[1], [2, 3]], ((1,), (2, 3))), ([], ())], [[[]], [1], [[-1]], "bad"]),
    "sequence_bias": (
        [
            ({(1, 2): 3}, {(1, 2): 3.0}),
            ([[[1, 2], 3.0]], {(1, 2): 3.0}),
            ({"(1, 2)": 3.0, "4": 1.0, "(5,)": 2.0}, {(1, 2): 3.0, (4,): 1.0, (5,): 2.0}),
        ],
        [{(1,): INF}, {(1,): True}, {(): 1.0}, {"a": 1.0}, [[[1], 2.0, 3]], [[[1], 1.0], [[1], 2.0]], 5],
    ),
    "force_words_ids": (
        [
            ([[1], [[2], [3, 4]]], ((1,), ((2,), (3, 4)))),
            ([[1, None, 2, None, 3]], ((1, None, 2, None, 3),)),
            ([[[1, None, 2], [3]]], (((1, None, 2), (3,)),)),
        ],
        [[1], [[]], [[[]]], [[[1], 2]], [[1, None]], [[None, 1]], [[None]], [[[1], [None, 2]]], [[-1]], [[True]]],
    ),
    "json_schema": (
        [
            ({"type": "object"}, JsonSchema('{"type": "object"}')),
            ('{"type":"object"}', JsonSchema('{"type": "object"}')),
        ],
        ["{", "[]", "7", "", [], True, 5, int, {"minimum": math.nan}, {"a": {1}}],
    ),
    "json_object": ([(True, True), (False, False)], [1, "yes"]),
    "regex": ([("a+", "a+"), ("[ ]", "[ ]")], ["", " ", 5, ["a"], b"a"]),
    "choice": ([(["yes", "no"], ("yes", "no")), (("b", "a", "b"), ("b", "a"))], ["yes", [], [""], [1], {"a": 1}, 5]),
    "grammar": ([('start: "a"', 'start: "a"')], ["", "\n", 5, ["a"]]),
    "force_words": (
        [("cat", ("cat",)), (["cat", ["dog", "wolf"]], ("cat", ("dog", "wolf"))), ([], ())],
        ["", [""], [[]], [["dog", ""]], [5], 5, [[["dog"]]], {"cat": 1}],
    ),
    "force_words_ordered": ([(True, True), (False, False)], [1, "yes"]),
    "negative_prompt": (
        [("dull", "dull"), ("", ""), ([5, 7], (5, 7)), ((0,), (0,))],
        [[], [-1], [1.5], ["dull"], 5, True, [True]],
    ),
    "best_of_by": ([("logprob", "logprob"), ("mbr", "mbr")], ["score", 1, True]),
    "exponential_decay_length_penalty": (
        [([5, 2], (5, 2.0)), ((0, 0.5), (0, 0.5))],
        [[5], [-1, 2.0], [5, 0], [0.5, 2]],
    ),
    "dry_sequence_breakers": ([(["\n", 5, [6, 7]], ("\n", 5, (6, 7))), ([], ())], [[""], [-1], [[]], "\n", [1.5]]),
    "processor_order": ([(["top_p", "temperature"], ("top_p", "temperature"))], [["top_q"], ["user", "user"], "user"]),
    "dola_layers": ([("low", "low"), ([1, 3], (1, 3))], ["middle", [], [-1]]),
}


def cases(side: int) -> list[tuple[str, object]]:
    return [(name, value) for table in (NUMBERS, STRUCTURES) for name, row in table.items() for value in row[side]]


def test_the_tables_of_this_file_name_every_option():
    missing = OPTIONS.keys() ^ (NUMBERS.keys() | STRUCTURES.keys())
    assert not missing, f"add accepted and refused values of {sorted(missing)} to NUMBERS or STRUCTURES"
    assert not NUMBERS.keys() & STRUCTURES.keys()


@pytest.mark.parametrize(("name", "value"), [(name, one) for name, row in NUMBERS.items() for one in row[0]])
def test_numbers_in_range_are_accepted_and_an_integer_will_do_for_a_float(name, value):
    got = getattr(GenerationConfig(**{name: value}), name)
    assert got == value
    assert type(got) is (float if OPTIONS[name].cli_type == "float" else int)


@pytest.mark.parametrize(("name", "pair"), [(name, one) for name, row in STRUCTURES.items() for one in row[0]])
def test_structures_are_normalized_to_immutable_values(name, pair):
    got = getattr(GenerationConfig(**{name: pair[0]}), name)
    assert got == pair[1]
    hash(got)


@pytest.mark.parametrize(("name", "value"), cases(1))
def test_a_value_out_of_range_is_refused_with_option_value_range_and_remedy(name, value):
    with pytest.raises(OptionError) as caught:
        GenerationConfig(**{name: value})
    assert caught.value.option == name
    assert str(caught.value) == f"`{name}` {OPTIONS[name].range}, got {value!r}; {OPTIONS[name].advice}"


def test_the_message_reads_as_a_sentence():
    with pytest.raises(ValueError) as caught:
        GenerationConfig(top_p=1.5)
    assert str(caught.value) == "`top_p` must be in (0, 1], got 1.5; use None for no limit"


@pytest.mark.parametrize("name", OPTIONS)
def test_none_says_off_and_counts_as_given(name):
    config = GenerationConfig(**{name: None})
    assert config.explicit == {name}
    assert OPTIONS[name].is_off(getattr(config, name))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_left_out_reads_as_its_default_and_so_does_unset(name):
    for config in (GenerationConfig(), GenerationConfig(**{name: UNSET})):
        assert config.explicit == frozenset()
        assert getattr(config, name) == OPTIONS[name].default


def test_numpy_numbers_are_numbers():
    np = pytest.importorskip("numpy")
    config = GenerationConfig(top_k=np.int64(5), top_p=np.float32(0.5), eos_token_id=[np.int32(3)])
    assert (config.top_k, config.top_p, config.eos_token_id) == (5, 0.5, (3,))
    assert type(config.top_k) is int


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "did you mean `temperature`?"),
        ("max_token", "did you mean `max_new_tokens`?"),
        ("max_tokens", "did you mean `max_new_tokens`?"),
        ("stop", "did you mean `stop_strings`?"),
        ("n", "did you mean `num_return_sequences`?"),
        ("zzz", "unspool.config.OPTIONS lists them all"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(OptionError) as caught:
        GenerationConfig(**{name: 1})
    assert (caught.value.option, caught.value.hint) == (name, hint)


@pytest.mark.parametrize("name", NO_EFFECT)
def test_attributes_without_effect_on_tokens_are_accepted_and_kept(name):
    config = GenerationConfig(**{name: "anything"})
    assert config.extras == {name: "anything"}
    assert config.explicit == frozenset()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_attributes_may_be_unset_but_not_set(name):
    for value in (None, False, [], {}):
        assert GenerationConfig(**{name: value}).extras == {name: value}
    for value in (True, 3, {"bias": 2.0}):
        with pytest.raises(OptionError) as caught:
            GenerationConfig(**{name: value})
        assert (caught.value.option, caught.value.hint) == (name, REFUSED[name].remedy)


def test_every_attribute_of_transformers_is_honored_without_effect_or_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig()
    names = set(vars(config)) | set(config.to_dict()) | set(config._get_default_generation_params())
    assert {name for name in names if option_status(name) == "unknown"} == set()
    assert option_status("temperature") == "honored"
    assert option_status("use_cache") == "no_effect"
    assert option_status("watermarking_config") == "refused"
    assert option_status("never_heard_of") == "unknown"
    ours = {name for name, row in OPTIONS.items() if row.source == "transformers"} - names
    assert not ours, f'transformers does not have {sorted(ours)}: declare source="unspool"'
    assert not {name for name, row in OPTIONS.items() if row.source == "unspool"} & names


def test_the_rows_of_the_table_are_whole():
    for name, row in OPTIONS.items():
        assert row.name == name
        assert row.group in GROUPS
        assert row.type
        assert row.help.endswith(".") and len(row.help) > 15
        assert row.is_off(row.off_value)
        assert row.check(row.default) == row.default
        assert set(row.partners) <= OPTIONS.keys() | {"assistant_model"}
    assert [row.group for row in OPTIONS.values()] == sorted((r.group for r in OPTIONS.values()), key=GROUPS.index)
    assert set(GROUPS) == {row.group for row in OPTIONS.values()}


def test_flags_of_structures_take_json_or_the_bare_word():
    assert OPTIONS["bad_words_ids"].from_text("[[1], [2, 3]]") == ((1,), (2, 3))
    assert OPTIONS["sequence_bias"].from_text("[[[1, 2], -1]]") == {(1, 2): -1.0}
    assert OPTIONS["sequence_bias"].from_text('{"1, 2": -1}') == {(1, 2): -1.0}
    assert OPTIONS["early_stopping"].from_text("never") == "never"
    assert OPTIONS["early_stopping"].from_text("true") is True
    assert OPTIONS["dola_layers"].from_text("low") == "low"
    assert OPTIONS["force_words_ids"].from_text("[[1, null, 2]]") == ((1, None, 2),)
    assert OPTIONS["force_words"].from_text('["cat", ["dog", "wolf"]]') == ("cat", ("dog", "wolf"))
    assert OPTIONS["force_words"].from_text("cat") == ("cat",)
    assert OPTIONS["negative_prompt"].from_text("a dull tale") == "a dull tale"
    assert OPTIONS["negative_prompt"].from_text("[5, 7]") == (5, 7)
    with pytest.raises(OptionError, match="bad_words_ids"):
        OPTIONS["bad_words_ids"].from_text("[[1")


@pytest.mark.parametrize(("name", "pair"), [(name, one) for name, row in STRUCTURES.items() for one in row[0]])
def test_json_of_a_normalized_value_is_accepted_and_fits_the_schema(name, pair):
    text = json.dumps(OPTIONS[name].plain(pair[1]))
    if OPTIONS[name].cli_type == "json":
        assert OPTIONS[name].from_text(text) == pair[1]
    if name in json_schema()["properties"]:
        assert fits(json.loads(text), json_schema()["properties"][name]["anyOf"][0])


@pytest.mark.parametrize("name", ["force_words", "force_words_ids", "negative_prompt", "lookahead_steps", "best_of_by"])
def test_the_schema_refuses_what_the_check_refuses(name):
    schema = json_schema()["properties"][name]["anyOf"][0]
    for value in {**NUMBERS, **STRUCTURES}[name][1]:
        assert not fits(value, schema) or value in ([[1, None]], [[None, 1]], [[None]], [[[1], [None, 2]]]), value


def fits(value, schema):
    """Return whether JSON fits a schema, as far as our schemas go; where a gap may stand is beyond them."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(one) and value == one for one in schema["enum"])
    if isinstance(value, list | tuple) and schema["type"] == "array":
        head = schema.get("prefixItems", [])
        rest = value[len(head) :]
        return (
            schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
            and all(fits(item, one) for item, one in zip(value, head, strict=False))
            and all(fits(item, schema["items"]) for item in rest)
        )
    types = {"string": str, "boolean": bool, "null": type(None), "integer": int, "number": int | float}
    if schema["type"] == "array" or not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, bool):
        return schema["type"] == "boolean"
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0)
    return value is None or (
        value >= schema.get("minimum", value) and not value <= schema.get("exclusiveMinimum", value - 1)
    )


FULL = {
    "temperature": 0.7,
    "top_k": None,
    "eos_token_id": [1, 2],
    "sequence_bias": {(1, 2): -3.0},
    "force_words_ids": [[1], [[2], [3]]],
    "dry_sequence_breakers": ["\n", 4],
    "exponential_decay_length_penalty": (3, 1.5),
    "seed": [1, 2],
    "early_stopping": "never",
}


def test_a_config_can_be_compared_hashed_copied_and_pickled():
    config = GenerationConfig(**FULL)
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and hash(other) == hash(config)
        assert (other.explicit, other.extras) == (config.explicit, config.extras)
    assert config != config.replace(top_k=5)
    assert GenerationConfig(top_k=None) != GenerationConfig()
    with pytest.raises(FrozenInstanceError):
        config.temperature = 1.0  # type: ignore[misc]


def test_repr_shows_what_was_given_and_evaluates_to_the_config_again():
    assert repr(GenerationConfig()) == "GenerationConfig()"
    config = GenerationConfig(**FULL)
    assert "0x" not in repr(config)
    assert eval(repr(config)) == config


def test_a_dict_gives_the_same_config_again():
    config = GenerationConfig(**FULL)
    assert GenerationConfig.from_dict(config.to_dict()) == config
    assert config.to_dict().keys() == FULL.keys()
    with pytest.raises(OptionError, match="`topp` is not an option"):
        GenerationConfig.from_dict({"topp": 0.5})
    with pytest.raises(OptionError, match="is not an option"):
        GenerationConfig.from_dict({5: 0.5})  # type: ignore[dict-item]


def test_replace_changes_adds_and_takes_back():
    config = GenerationConfig(temperature=0.7, top_k=5, use_cache=False)
    changed = config.replace(temperature=0.9, top_k=UNSET, seed=1)
    assert changed == GenerationConfig(temperature=0.9, seed=1)
    assert changed.extras == {"use_cache": False}
    with pytest.raises(OptionError, match="top_p"):
        config.replace(top_p=2)


def test_diff_tells_given_from_not_given():
    here, there = GenerationConfig(temperature=0.7, top_k=None), GenerationConfig(temperature=0.8)
    assert here.diff(there) == {"temperature": (0.7, 0.8), "top_k": (None, UNSET)}
    assert here.diff(here) == {}


@pytest.mark.parametrize(("old", "new"), [("given", "explicit"), ("asked", "requested")])
def test_old_attribute_names_warn_and_return_the_same(old, new):
    config = resolve({"top_p": 0.9}, GenerationConfig(num_return_sequences=1))
    with pytest.warns(DeprecationWarning, match=f"`{old}` is now `{new}`"):
        assert getattr(config, old) == getattr(config, new) != frozenset()


def test_the_signature_names_every_option():
    assert list(inspect.signature(GenerationConfig).parameters) == list(OPTIONS)
    assert {one.name for one in fields(GenerationConfig)} == OPTIONS.keys() | {
        "explicit",
        "requested",
        "stored",
        "extras",
    }
