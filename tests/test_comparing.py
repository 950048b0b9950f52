"""LanguageModel.compare: each answer is the one that its options give alone, and nothing asked for goes unread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.speakers import recite
from tests.toys import SmallBeam, mixing_toy, toy
from unspool import CapacityError, GenerationConfig, LanguageModel, OptionError, set_seed
from unspool.comparing import LINE_UP, line_up
from unspool.strategies import STRATEGIES

PROMPT = [1, 2, 3]


class Counting:
    """A runtime that counts its forwards and remembers how many sequences each had."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.info, self.batches = runtime, runtime.info, list[int]()

    def forward(self, feeds: Any) -> Any:
        self.batches.append(len(feeds))
        return self.runtime.forward(feeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)


def model(**stored: Any) -> LanguageModel:
    return LanguageModel(mixing_toy(), config=GenerationConfig(**stored))


def tokens(generation: Any) -> tuple[int, ...]:
    ids = generation.completions[0].token_ids
    assert isinstance(ids, tuple)
    return ids


ENTRIES: dict[str, dict[str, Any]] = {
    "plain": {"strategy": "greedy"},
    "hot": {"temperature": 1.5},
    "two": {"do_sample": True, "num_return_sequences": 2},
    "narrow": {"num_beams": 2},
    "wide": {"num_beams": 5, "length_penalty": 0.0},
    "both": {"num_beams": 3, "do_sample": True},
    "penalized": {"strategy": "greedy", "repetition_penalty": 1.3},
}


def test_each_answer_is_the_one_that_its_options_give_alone() -> None:
    lm = model()
    result = lm.compare(PROMPT, ENTRIES, max_new_tokens=12, seed=5)
    assert list(result) == list(ENTRIES)
    for name, options in ENTRIES.items():
        alone = lm.generate(PROMPT, max_new_tokens=12, seed=5, **options)
        assert result[name].completions == alone.completions, name
        assert (result[name].strategy, result[name].config) == (alone.strategy, alone.config)
    assert {answer.seed for answer in result.values()} == {5}


def test_all_entries_share_one_batch() -> None:
    runtime: Any = Counting(mixing_toy())
    LanguageModel(runtime).compare(PROMPT, {"a": {}, "b": {"do_sample": True}}, max_new_tokens=6, ignore_eos=True)
    assert runtime.batches == [2] * 6


@pytest.mark.parametrize("prompt", ["Tell me:\n", [10, 20, 201]])
def test_the_prompt_is_a_text_or_token_ids(prompt: Any) -> None:
    lm = recite("Once upon a time.")
    result = lm.compare(prompt, ["greedy"], max_new_tokens=20)
    assert result["greedy"].text == lm.generate(prompt, max_new_tokens=20).text
    assert result.prompt == lm.generate(prompt, max_new_tokens=1).prompt


def test_several_prompts_are_compared_in_one_batch_in_their_order() -> None:
    runtime = Counting(mixing_toy())
    lm, prompts = LanguageModel(runtime), [[1, 2], [3], [4, 5, 6]]
    found = lm.compare(prompts, ENTRIES, max_new_tokens=6, seed=5)
    num_passes = len(runtime.batches)
    assert len(found) == len(prompts)
    for prompt, comparison in zip(prompts, found, strict=True):
        alone = lm.compare(prompt, ENTRIES, max_new_tokens=6, seed=5)
        assert {name: tokens(alone[name]) for name in alone} == {name: tokens(comparison[name]) for name in comparison}
    assert num_passes <= 8, "all entries of all prompts share their passes"
    assert lm.compare([], ["greedy"]) == []


def test_options_per_prompt_reach_the_entries_of_that_prompt_alone() -> None:
    lm = model()
    found = lm.compare([PROMPT, [4]], ["greedy", "sample"], max_new_tokens=[3, 5], temperature=[0.5, 2.0], seed=[1, 2])
    for prompt, comparison, options in zip([PROMPT, [4]], found, [(3, 0.5, 1), (5, 2.0, 2)], strict=True):
        length, temperature, seed = options
        alone = lm.compare(prompt, ["greedy", "sample"], max_new_tokens=length, temperature=temperature, seed=seed)
        assert [tokens(alone[name]) for name in alone] == [tokens(comparison[name]) for name in comparison]
    with pytest.raises(OptionError, match="`top_p` of prompt 1 must be"):
        lm.compare([PROMPT, [4]], ["sample"], top_p=[0.5, 7.0])


def test_entries_of_one_prompt_share_a_fresh_seed_and_prompts_do_not() -> None:
    first, second = model().compare([PROMPT, PROMPT], ["sample", "top_k"], max_new_tokens=2)
    assert first["sample"].seed == first["top_k"].seed
    assert second["sample"].seed == second["top_k"].seed != first["sample"].seed


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_entries_without_a_seed_share_a_fresh_one() -> None:
    lm = model()
    draws: dict[str, Any] = {"a": {"do_sample": True}, "b": {"do_sample": True}, "c": {"do_sample": True, "seed": 9}}
    result = lm.compare(PROMPT, draws, max_new_tokens=8)
    assert result["a"].seed == result["b"].seed
    assert tokens(result["a"]) == tokens(result["b"])
    assert result["c"].seed == 9
    assert tokens(result["a"]) == tokens(lm.generate(PROMPT, do_sample=True, seed=result["a"].seed, max_new_tokens=8))
    assert lm.compare(PROMPT, draws, max_new_tokens=8)["a"].seed != result["a"].seed


def test_set_seed_makes_comparisons_reproducible() -> None:
    lm = model()
    try:
        set_seed(4)
        first = lm.compare(PROMPT, {"a": {"do_sample": True}, "b": {"top_p": 0.5}}, max_new_tokens=8)
        set_seed(4)
        again = lm.compare(PROMPT, {"a": {"do_sample": True}, "b": {"top_p": 0.5}}, max_new_tokens=8)
    finally:
        set_seed(None)
    assert [tokens(answer) for answer in first.values()] == [tokens(answer) for answer in again.values()]


def test_a_stored_seed_is_kept() -> None:
    assert model(seed=77).compare(PROMPT, {"a": {"do_sample": True}}, max_new_tokens=2)["a"].seed == 77


# --- which options reach which entry -----------------------------------------------------------------------------


def test_a_shared_option_reaches_the_entries_that_read_it_and_the_others_say_so() -> None:
    lm = model()
    entries: dict[str, Any] = {
        "greedy": {"strategy": "greedy"},
        "sample": {"strategy": "sample"},
        "beam": {"strategy": "beam"},
    }
    result = lm.compare(PROMPT, entries, max_new_tokens=10, seed=1, temperature=0.4, num_beams=3)
    assert [row.unread for row in result.rows] == [("num_beams", "temperature"), ("num_beams",), ("temperature",)]
    assert result.unread == {"num_beams": ("greedy", "sample"), "temperature": ("greedy", "beam")}
    alone = {
        "greedy": lm.generate(PROMPT, max_new_tokens=10, seed=1),
        "sample": lm.generate(PROMPT, max_new_tokens=10, seed=1, temperature=0.4),
        "beam": lm.generate(PROMPT, max_new_tokens=10, seed=1, num_beams=3),
    }
    assert {name: tokens(answer) for name, answer in result.items()} == {
        name: tokens(answer) for name, answer in alone.items()
    }


def test_the_users_config_reaches_entries_as_shared_options_do() -> None:
    config = GenerationConfig(temperature=0.4, max_length=30)
    entries: dict[str, Any] = {"g": {"strategy": "greedy"}, "s": {"strategy": "sample"}}
    result = model().compare(PROMPT, entries, config=config, max_new_tokens=4, ignore_eos=True)
    assert result.unread == {"temperature": ("g",)}
    assert result["s"].config.temperature == 0.4
    assert {len(tokens(answer)) for answer in result.values()} == {4}  # max_new_tokens of the call, not max_length


def test_entries_come_before_shared_options_and_those_before_the_config() -> None:
    result = model(top_k=9).compare(
        PROMPT,
        {"own": {"temperature": 0.1}, "shared": {}},
        config=GenerationConfig(temperature=0.3, top_p=0.8),
        temperature=0.2,
        max_new_tokens=2,
    )
    configs = {name: answer.config for name, answer in result.items()}
    assert [(c.temperature, c.top_p, c.top_k) for c in configs.values()] == [(0.1, 0.8, 9), (0.2, 0.8, 9)]


@pytest.mark.parametrize("own", [{"max_length": 7}, {"max_new_tokens": 4}])
def test_an_entrys_length_takes_the_place_of_the_shared_one_of_either_kind(own: dict[str, int]) -> None:
    lm = LanguageModel(mixing_toy(), config=GenerationConfig(ignore_eos=True))
    for shared in ({"max_length": 12}, {"max_new_tokens": 9}):
        (answer,) = lm.compare(PROMPT, {"own": own}, **shared).values()
        assert len(tokens(answer)) == 4


def test_an_option_that_nobody_reads_is_refused() -> None:
    with pytest.raises(OptionError, match="`top_p` is not read by any entry that it would reach .greedy, beam."):
        model().compare(PROMPT, ["greedy", "beam"], top_p=0.5)
    with pytest.raises(OptionError, match="`top_p`"):
        model().compare(PROMPT, ["greedy"], config=GenerationConfig(top_p=0.5))
    with pytest.raises(OptionError, match=r"would reach \(g\)"):  # the other entry has its own
        model().compare(PROMPT, {"g": {"strategy": "greedy"}, "s": {"strategy": "sample", "top_p": 0.3}}, top_p=0.5)


@pytest.mark.parametrize(
    ("entries", "shared", "option", "entry"),
    [
        ({"ok": {}, "bad": {"top_p": 1.5}}, {}, "top_p", "bad"),
        ({"ok": {}, "bad": {"tempratur": 1.5}}, {}, "tempratur", "bad"),
        ({"ok": {}, "bad": {"strategy": "greedy", "top_p": 0.5}}, {}, "top_p", "bad"),
        ({"ok": {}, "bad": {"strategy": "beam"}}, {}, "strategy", "bad"),
        ({"ok": {}, "bad": {"eos_token_id": 999}}, {}, "eos_token_id", "bad"),
        ({"ok": {}, "bad": {"stop_strings": "x"}}, {}, "stop_strings", "bad"),
        ({"ok": {}, "bad": GenerationConfig(num_beams=2, num_return_sequences=3)}, {}, "num_return_sequences", "bad"),
        # what is shared is not left out where it is read and wrong there
        ({"ok": {"do_sample": True}, "bad": {"num_beams": 2}}, {"num_return_sequences": 3},
         "num_return_sequences", "bad"),
        ({"bad": {}}, {"stop_strings": "x"}, "stop_strings", "bad"),
        ({"ok": {"do_sample": True}, "bad": {}}, {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5},
         "do_sample", "ok"),
        ({"bad": {}}, {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5}, "num_beam_groups", "bad"),
        ({"bad": {}}, {"max_new_tokens": 3, "max_length": 9}, "max_length", "bad"),
        ({"bad": {}}, {"do_sample": True, "strategy": "greedy"}, "do_sample", "bad"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_names_it_before_any_work(
    entries: Any, shared: dict[str, Any], option: str, entry: str
) -> None:
    runtime: Any = Counting(mixing_toy())
    with pytest.raises(OptionError, match=f"^`{option}` of the entry '{entry}' ") as caught:
        LanguageModel(runtime).compare(PROMPT, entries, **shared)
    assert caught.value.option == option
    assert not runtime.batches


@pytest.mark.parametrize("shared", [{"top_p": 1.5}, {"tempratur": 1}, {"config": {"top_p": 0.5}}])
def test_a_shared_option_that_is_wrong_by_itself_names_no_entry(shared: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        model().compare(PROMPT, {"a": {}}, **shared)
    assert "entry" not in str(caught.value)


def test_do_sample_stops_at_entries_that_name_a_strategy_which_cannot() -> None:
    result = model().compare(PROMPT, ["greedy", "sample"], do_sample=True, max_new_tokens=3)
    assert result.unread == {"do_sample": ("greedy",)}


def test_a_request_too_big_for_the_model_is_refused_whole() -> None:
    lm = LanguageModel(mixing_toy(max_sequences=3))
    with pytest.raises(CapacityError):
        lm.compare(PROMPT, {"small": {}, "big": {"num_beams": 8}}, max_new_tokens=3)
    assert not lm.runtime.cached  # type: ignore[attr-defined]


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_may_be_a_config_or_hold_objects() -> None:
    lm = LanguageModel(toy())
    result = lm.compare(
        [0],
        {"config": GenerationConfig(num_beams=2, use_cache=True), "mine": {"strategy": SmallBeam(2)}},
        max_new_tokens=6,
    )
    assert result["config"].strategy == "beam"
    assert result["mine"].strategy == "small_beam"
    assert result["mine"].completions == lm.generate([0], strategy=SmallBeam(2), max_new_tokens=6).completions


def test_the_config_of_an_answer_is_an_entry_that_repeats_it() -> None:
    lm = model()
    for first in lm.compare(PROMPT, ENTRIES, max_new_tokens=6, seed=3).values():
        (again,) = lm.compare(PROMPT, {"again": first.config}).values()
        assert again.completions == first.completions


@pytest.mark.parametrize(
    "strategies", ["greedy", 3, {}, [], {"": {}}, {1: {}}, {"a": "greedy"}, {"a": None}, ["greedy", "nope"], [{}]]
)
def test_what_is_no_entry_is_refused(strategies: Any) -> None:
    with pytest.raises(OptionError, match="`strategies`"):
        model().compare(PROMPT, strategies)


# --- the line-up -----------------------------------------------------------------------------------------------------


def test_the_line_up_holds_the_entries_of_every_strategy_in_order() -> None:
    first = ("greedy", "sample", "top_k", "top_p", "min_p", "beam", "beam_sample", "diverse_beam")
    assert line_up()[: len(first)] == first
    assert {LINE_UP[entry]["strategy"] for entry in line_up()} == set(STRATEGIES)


def test_the_whole_line_up_runs_and_each_is_what_generate_gives() -> None:
    lm = model()
    result = lm.compare(PROMPT, max_new_tokens=6, seed=2)
    assert {"greedy", "sample", "top_k", "top_p", "min_p", "beam", "beam_sample"} <= set(result)
    assert list(result) == [name for name in line_up() if name in result]
    assert "constrained_beam" not in result and "assisted" not in result
    assert result.unread == {}
    for name, answer in result.items():
        alone = lm.generate(PROMPT, max_new_tokens=6, seed=2, **LINE_UP[name])
        assert answer.completions == alone.completions, name
        assert answer.strategy == LINE_UP[name]["strategy"]


def test_what_the_model_lacks_is_left_out_of_the_line_up_and_tried_when_named() -> None:
    runtime = toy()
    runtime.info = replace(runtime.info, hidden_states=False, num_layers=None)
    lm = LanguageModel(runtime)
    assert not {"contrastive", "dola"} & set(lm.compare([0], max_new_tokens=2))
    with pytest.raises(OptionError, match="of the entry 'contrastive'"):
        lm.compare([0], ["contrastive"], max_new_tokens=2)


def test_what_the_call_brings_lets_more_of_the_line_up_run() -> None:
    result = model().compare(PROMPT, force_words_ids=[[5]], prompt_lookup_num_tokens=2, max_new_tokens=6)
    assert 5 in tokens(result["constrained_beam"])
    assert tokens(result["assisted"]) == tokens(result["greedy"])
    assert "constrained_beam" not in result.unread["force_words_ids"]
    assert "assisted" not in result.unread["prompt_lookup_num_tokens"]


def test_a_shared_draft_model_reaches_the_entry_that_drafts() -> None:
    lm = model()
    result = lm.compare(PROMPT, ["greedy", "beam", "assisted"], assistant_model=model(), max_new_tokens=6)
    assert result.unread == {"assistant_model": ("greedy", "beam")}
    assert tokens(result["assisted"]) == tokens(result["greedy"])
    with pytest.raises(OptionError, match="`assistant_model` is not read by any entry"):
        lm.compare(PROMPT, ["greedy"], assistant_model=model())


def test_presets_of_the_line_up_give_way_to_what_is_shared() -> None:
    result = model().compare(PROMPT, ["top_p", "beam", "diverse_beam"], top_p=0.3, num_beams=6, max_new_tokens=3)
    assert result["top_p"].config.top_p == 0.3
    assert result["beam"].config.num_beams == 6
    assert (result["diverse_beam"].config.num_beams, result["diverse_beam"].config.num_beam_groups) == (6, 6)
    several = model().compare(PROMPT, ["beam", "best_of"], num_return_sequences=5, max_new_tokens=3)
    assert [len(answer.completions) for answer in several.values()] == [5, 5]


def test_presets_that_a_stored_temperature_of_zero_leaves_unread_are_no_remark() -> None:
    result = model().compare(PROMPT, ["sample", "top_p"], temperature=0, max_new_tokens=3)
    assert {answer.strategy for answer in result.values()} == {"greedy"}
    assert result.unread == {}


def test_the_line_up_cannot_be_told_its_strategy() -> None:
    with pytest.raises(OptionError, match="`strategy` is set by each entry"):
        model().compare(PROMPT, strategy="beam")


def test_a_draft_model_is_not_left_out_where_it_is_wanted_and_wrong() -> None:
    lm, other = model(), LanguageModel(mixing_toy(11))
    with pytest.raises(OptionError, match="^`assistant_model` of the entry 'own' "):
        lm.compare(PROMPT, {"ok": {}, "own": {"strategy": "greedy", "assistant_model": model()}})
    with pytest.raises(OptionError, match="^`assistant_model` of the entry 'assisted' "):
        lm.compare(PROMPT, ["greedy", "assisted"], assistant_model=other)
    with pytest.raises(OptionError, match="^`assistant_model` of the entry 'free' "):
        lm.compare(PROMPT, {"free": {}}, assistant_model=other)
