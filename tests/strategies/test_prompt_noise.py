"""Prompts draw apart under one seed; the same prompt draws alike; `seed_prompt_tokens` says how much of it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from tests.toys import drain, mixing_toy, request, results, run_alone
from unspool.engine import Engine, Request
from unspool.engine.request import prompt_key_of
from unspool.errors import OptionError
from unspool.model import LanguageModel
from unspool.noise import prompt_key, token_bytes
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Source

DRAWS: dict[str, Any] = {"do_sample": True, "max_new_tokens": 8, "ignore_eos": True}
KEEPS_ITS_DRAWS: list[dict[str, Any]] = [
    {"num_return_sequences": 3},
    {"temperature": 0.7, "top_p": 0.9},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"prompt_lookup_num_tokens": 3},
]
"""Strategies and processors that draw, and draw one token after another."""


def level(_: tuple[int, ...]) -> Sequence[float]:
    """Return five tokens of one probability, and 59 for prompts alone."""
    return [1.0] * 5 + [0.0] * 59


def drawn(requests: Sequence[Request], runtime: ToyRuntime | None = None) -> list[tuple[int, ...]]:
    """Return the first output of each request, all run together."""
    engine = Engine(runtime or ToyRuntime(level, 64))
    numbers = [engine.submit(each) for each in requests]
    found = results(drain(engine))
    return [found[number][0].token_ids for number in numbers]  # type: ignore[index]


def test_prompts_draw_independently_under_one_seed() -> None:
    """Pairs of prompts that differ in one token: the 25 pairs of tokens are equally frequent.

    Chi-square with 24 degrees of freedom: above 75 with probability 6e-7 for each of the two tests.
    """
    prompts = [[number // 64, number % 64] for number in range(3000)]
    tokens = [ids[0] for ids in drawn([request(each, seed=1, do_sample=True, max_new_tokens=1) for each in prompts])]
    neighbors, far = zip(tokens[::2], tokens[1::2], strict=True), zip(tokens[:1500], tokens[1500:], strict=True)
    for pairs in (neighbors, far):
        counts = Counter(pairs)
        assert sum((counts[a, b] - 60) ** 2 / 60 for a in range(5) for b in range(5)) < 75


def test_many_prompts_under_one_seed_differ_at_every_place() -> None:
    """With 1,000 tokens, 80 draws hold fewer than 60 different ones with probability below 1e-12."""
    runtime = ToyRuntime(lambda _: [1.0] * 1000, 1000)
    found = drawn([request([number], seed=1, **DRAWS) for number in range(80)], runtime)
    assert all(len({ids[place] for ids in found}) > 60 for place in range(8))


def test_processors_that_draw_do_so_apart_for_each_prompt() -> None:
    """XTC forbids token 0 with chance 1/2, so token 1 has 0.55: mean 220 of 400, six deviations of 10 either way."""
    runtime = ToyRuntime(lambda _: [0.9, 0.1] + [0.0] * 398, 400)
    options = {"xtc_probability": 0.5, "xtc_threshold": 0.05, "max_new_tokens": 1}
    found = drawn([request([number], seed=1, **options) for number in range(400)], runtime)
    assert 160 < sum(ids[0] for ids in found) < 280


@pytest.mark.parametrize("options", [*KEEPS_ITS_DRAWS, {"num_beams": 3}, {"best_of": 3},
                                     {"num_beams": 3, "strategy": "stochastic_beam"}])  # fmt: skip
def test_one_prompt_twice_draws_twice_the_same_alone_and_in_company(options: dict[str, Any]) -> None:
    wanted = request([4, 1, 4], seed=5, **DRAWS, **options)
    alone = run_alone(mixing_toy, wanted)
    assert isinstance(alone, tuple)
    company = [request([number], seed=5, **DRAWS) for number in range(4)]
    assert drawn([*company, wanted, wanted], mixing_toy())[-2:] == [alone[0].token_ids] * 2


@pytest.mark.parametrize("options", KEEPS_ITS_DRAWS)
def test_a_text_branched_in_its_middle_goes_on_with_the_same_draws(options: dict[str, Any]) -> None:
    prompt, seeds = [4, 1, 4], range(6)
    for seed in seeds:
        whole = run_alone(mixing_toy, request(prompt, seed=seed, **DRAWS, **options))
        assert isinstance(whole, tuple)
        for output in (0, len(whole) - 1):
            ids = whole[output].token_ids
            rest = request(
                [*prompt, *ids[:3]], seed=seed, seed_prompt_tokens=3, **DRAWS | {"max_new_tokens": 5}, **options
            )
            again = run_alone(mixing_toy, rest)
            assert isinstance(again, tuple)
            assert again[output].token_ids == ids[3:]


def test_without_the_option_the_middle_of_a_text_is_another_prompt() -> None:
    whole = run_alone(mixing_toy, request([4, 1, 4], seed=2, **DRAWS))
    assert isinstance(whole, tuple)
    again = run_alone(mixing_toy, request([4, 1, 4, *whole[0].token_ids[:3]], seed=2, **DRAWS | {"max_new_tokens": 5}))
    assert isinstance(again, tuple) and again[0].token_ids != whole[0].token_ids[3:]


def test_none_of_the_prompt_counts_with_zero() -> None:
    wanted = [request([number, 1], seed=3, seed_prompt_tokens=0, **DRAWS) for number in range(10)]
    assert len(set(drawn(wanted))) == 1


def test_more_tokens_than_the_prompt_has_are_refused_before_any_work() -> None:
    with pytest.raises(OptionError, match=r"`seed_prompt_tokens` must be at most the 2 tokens of the prompt, got 3"):
        Engine(mixing_toy()).submit(request([1, 2], seed_prompt_tokens=3, **DRAWS))


def test_the_negative_prompt_does_not_name_the_draws() -> None:
    one = request([1, 2], guidance_scale=2.0, **DRAWS, own={"negative_prompt": (3,)})
    assert prompt_key_of(one) == prompt_key_of(request([1, 2], **DRAWS)) == prompt_key([1, 2])


def test_the_key_is_that_of_the_definition_on_every_system() -> None:
    assert token_bytes([1, 258]) == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0])
    assert prompt_key([]) == 0xB4B2797457A0A6E4
    assert prompt_key([1, 2, 3]) == 0xB4FB5A8DE61ABA77
    assert prompt_key([1, 2]) != prompt_key([1], [token_bytes([2])]) != prompt_key([1, 2], [b""])


def test_what_the_encoder_reads_names_the_draws_as_well() -> None:
    def key(source: Source, count: int | None = None) -> int:
        return prompt_key_of(request([1, 2], seed_prompt_tokens=count, own={"source": source}, **DRAWS))

    pixels = torch.arange(6.0).view(1, 2, 3)
    sources = [
        Source(inputs={"input_ids": torch.tensor([[1, 2]])}, token_ids=(1, 2)),
        Source(inputs={"input_ids": torch.tensor([[1, 3]])}, token_ids=(1, 3)),
        Source(inputs={"pixel_values": pixels}),
        Source(inputs={"pixel_values": pixels.bfloat16()}),
        Source(inputs={"pixel_values": pixels + 1}),
    ]
    assert len({key(source) for source in sources} | {key(source, 1) for source in sources}) == 10
    strided = pixels.transpose(1, 2).contiguous().transpose(1, 2)
    assert key(Source(inputs={"pixel_values": strided})) == key(sources[2])
    padded = Source(inputs={"input_ids": torch.tensor([[1, 2, 0]])}, token_ids=(1, 2))
    assert key(padded) == key(sources[0])


def test_an_encoder_decoder_goes_on_from_the_middle_and_draws_apart_for_each_source() -> None:
    lm = unspool.load(tiny_seq2seq("t5"))
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6, "ignore_eos": True, "seed": 7}
    source = [[5, 6, 7], [5, 6, 8]]
    whole, other = lm.generate(source, **options)
    ids = whole.completions[0].token_ids
    rest = lm.generate(source[0], decoder_input_ids=[0, *ids[:2]], seed_prompt_tokens=1,
                       **options | {"max_new_tokens": 4})  # fmt: skip
    assert rest.completions[0].token_ids == ids[2:]
    assert other.completions[0].token_ids != ids


def test_every_door_draws_the_same_for_one_prompt_and_seed() -> None:
    model = tiny_model("llama")
    lm = unspool.load(model)
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6, "ignore_eos": True, "seed": 7}
    prompts = [[5, 6, 7], [5, 6, 8, 9]]
    expected = [lm.generate(prompt, **options).completions[0].token_ids for prompt in prompts]
    assert [each.completions[0].token_ids for each in lm.generate(prompts, **options)] == expected
    stream = lm.stream(prompts, **options)
    list(stream)
    assert [each.completions[0].token_ids for each in stream.generations] == expected
    drafted = lm.generate(prompts, assistant_model=tiny_model("llama", seed=3), **options)
    assert [each.completions[0].token_ids for each in drafted] == expected
    compared = lm.compare(prompts[0], {"plain": {}, "again": {}}, **options)
    assert [each.completions[0].token_ids for each in compared.values()] == [expected[0]] * 2
    padded = torch.tensor([[0, 5, 6, 7], [5, 6, 8, 9]])
    mask = (padded != 0).long()
    plain = {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "eos_token_id": None, "seed": 7}
    rows = unspool.generate(model, padded, attention_mask=mask, **plain)
    assert [tuple(row) for row in rows[:, 4:].tolist()] == expected


def test_rows_of_the_drop_in_differ_and_repeat_under_torchs_seed() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]] * 4)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(unspool.generate(model, ids, do_sample=True, max_new_tokens=8, eos_token_id=None))
    assert torch.equal(*runs) and len({tuple(row) for row in runs[0].tolist()}) == 4


def test_greedy_search_does_not_read_the_option() -> None:
    lm = LanguageModel(mixing_toy())
    with pytest.raises(OptionError, match="`seed_prompt_tokens` is not read by the strategy greedy"):
        lm.generate([1, 2], max_new_tokens=2, seed_prompt_tokens=1)
    with pytest.raises(OptionError, match="`seed_prompt_tokens` is not read by the strategy assisted"):
        lm.generate([1, 2], max_new_tokens=2, seed_prompt_tokens=1, prompt_lookup_num_tokens=2)
