"""LanguageModel: what a caller gives and gets, on models that need no weights."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from typing import Any

import pytest

import unspool
from tests.speakers import recite
from tests.text.tokenizers import byte_level
from tests.tiny_seq2seq import tiny_seq2seq
from tests.toys import TABLE, mixing_toy, toy
from unspool import (
    CancelledRequest,
    CapacityError,
    GenerationConfig,
    LanguageModel,
    OptionError,
    PromptError,
)
from unspool.strategies import Greedy

TALE = "Once upon a time there was a fox 🦊 who said: 你好, wörld! The end."


def live(lm: LanguageModel) -> int:
    assert not isinstance(lm.runtime, property)
    return len(lm.runtime.cached)  # type: ignore[attr-defined]


def test_a_prompt_goes_in_and_text_comes_out() -> None:
    lm = recite(TALE)
    result = lm.generate("Tell me:\n")
    assert result.text == str(result) == TALE
    assert result.completions[0].finish_reason == "eos"
    assert result.prompt == "Tell me:\n"
    assert result.usage.completion_tokens == len(result.completions[0].token_ids)
    assert result.usage.prompt_tokens == len(result.prompt_token_ids)
    assert result.strategy == "greedy"
    assert live(lm) == 0


@pytest.mark.parametrize(
    ("prompt", "shape"),
    [
        ("a\n", None),
        (["a\n", "b\n"], 2),
        (["a\n"], 1),
        ([], 0),
        ([10, 20], None),
        ([[10, 20], [30]], 2),
        (((10, 20), (30,)), 2),
    ],
)
def test_one_prompt_gives_one_result_and_several_give_a_list(prompt: Any, shape: int | None) -> None:
    lm = LanguageModel(mixing_toy(40))
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], str)):
        lm = recite(TALE)
    result = lm.generate(prompt, max_new_tokens=3)
    assert (len(result) if isinstance(result, list) else None) == shape


def test_long_prompts_go_first_and_results_come_in_the_order_of_the_prompts() -> None:
    runtime, lengths = mixing_toy(), list[int]()
    forward = runtime.forward

    def spied(feeds: Any) -> Any:
        lengths.extend(len(feed.tokens) for feed in feeds if len(feed.tokens) > 1)
        return forward(feeds)

    runtime.forward = spied  # type: ignore[method-assign]
    prompts = [[1] * 4, [2] * 9, [3] * 2, [4] * 9, [5] * 6]
    options: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 5}
    together = LanguageModel(runtime).generate(prompts, **options)
    assert lengths == [9, 9, 6, 4, 2]
    assert [list(result.prompt_token_ids) for result in together] == prompts
    in_order = LanguageModel(mixing_toy()).generate(sorted(prompts, key=len, reverse=True), do_sample=False)
    found = LanguageModel(mixing_toy()).generate(prompts, do_sample=False)
    assert sorted(result.completions[0].token_ids for result in found) == sorted(
        result.completions[0].token_ids for result in in_order
    )
    lengths.clear()
    with LanguageModel(runtime).stream(prompts, **options) as stream:
        list(stream)
    assert lengths == [4, 9, 2, 9, 6], "who is watched waits for nobody that came later"


def test_tensors_are_prompts_too() -> None:
    import torch

    lm = LanguageModel(mixing_toy())
    assert lm.generate(torch.tensor([1, 2]), max_new_tokens=3).text == ""
    assert len(lm.generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=3)) == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "a text, a list of token ids"),
        (None, "a text, a list of token ids"),
        ([1, "a"], "prompt 0 must be"),
        ([True, False], "prompt 0 must be"),
        ([[1], [2.5]], "prompt 1 must be"),
        ([[]], "no token"),
        ("text", "needs a tokenizer"),
        ([99], "outside the vocabulary"),
    ],
)
def test_bad_prompts_are_refused_in_words(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        LanguageModel(toy()).generate(prompt)


def test_the_seed_in_the_result_brings_the_result_again() -> None:
    lm = LanguageModel(mixing_toy())
    first = lm.generate([1], do_sample=True, max_new_tokens=12)
    again = lm.generate([1], do_sample=True, max_new_tokens=12, seed=first.seed)
    other = lm.generate([1], do_sample=True, max_new_tokens=12)
    assert first.completions[0].token_ids == again.completions[0].token_ids
    assert other.seed != first.seed  # alike with probability 2**-32


def test_one_seed_serves_each_prompt_as_if_alone_and_a_list_gives_each_its_own() -> None:
    lm = LanguageModel(mixing_toy())

    def ids(prompt: Any, seed: Any) -> Any:
        results = lm.generate(prompt, do_sample=True, max_new_tokens=8, seed=seed)
        return [r.completions[0].token_ids for r in (results if isinstance(results, list) else [results])]

    assert ids([[1], [2]], 5) == ids([1], 5) + ids([2], 5)
    assert ids([[1], [1]], [5, 6]) == ids([1], 5) + ids([1], 6)
    with pytest.raises(OptionError, match="one for each of the 2 prompts"):
        ids([[1], [2]], [5, 6, 7])


def test_set_seed_makes_a_sequence_of_calls_reproducible() -> None:
    lm = LanguageModel(mixing_toy())

    def two() -> list[int]:
        return [lm.generate([1], do_sample=True, max_new_tokens=2).seed for _ in range(2)]

    unspool.set_seed(7)
    first = two()
    unspool.set_seed(7)
    second = two()
    unspool.set_seed(None)
    assert first == second and first[0] != first[1]
    assert two() != first


def test_sampling_options_mean_sampling_and_temperature_zero_means_greedy() -> None:
    lm = LanguageModel(mixing_toy())
    greedy = lm.generate([1], max_new_tokens=6)
    assert lm.generate([1], temperature=1.5, max_new_tokens=6).strategy == "sample"
    cold = lm.generate([1], temperature=0, max_new_tokens=6)
    assert (cold.strategy, cold.completions[0].token_ids) == ("greedy", greedy.completions[0].token_ids)


def test_options_of_the_call_come_before_the_users_and_those_before_the_models() -> None:
    lm = LanguageModel(mixing_toy(), config=GenerationConfig(max_new_tokens=3))
    user = GenerationConfig(max_new_tokens=4)
    assert lm.generate([1]).usage.completion_tokens == 3
    assert lm.generate([1], config=user).usage.completion_tokens == 4
    assert lm.generate([1], config=user, max_new_tokens=5).usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"temprature": 1.0}, "temprature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0.5, "do_sample": False}, "top_p"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 3, "num_beam_groups": 3}, "num_beam_groups"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"dry_multiplier": 0.8}, "dry_sequence_breakers"),
    ],
)
def test_nothing_asked_is_ignored(options: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as caught:
        LanguageModel(mixing_toy()).generate([1], **options)
    assert caught.value.option == option
    assert f"`{option}`" in str(caught.value)


def test_stop_strings_end_the_text_before_them() -> None:
    lm = recite(TALE)
    result = lm.generate("x\n", stop_strings=["said: 你", "wörld"])
    assert result.text == TALE[: TALE.index("said")]
    assert result.completions[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|turn|>", "She said yes."),
        ("<|turn|>Us", "She said yes."),
        ("yes.<|turn|>", "She said "),
        ("|turn|>Use", "She said yes."),
        (".User", None),
        ("er<|end|>", None),
    ],
)
def test_a_special_token_counts_with_its_text_in_stop_strings(stop: str, text: str | None) -> None:
    """The end-of-sequence token ends the output by itself, so nothing is cut there."""
    lm = recite("She said yes.<|turn|>User")
    result = lm.generate("x\n", stop_strings=stop)
    assert result.text == ("She said yes.User" if text is None else text)
    assert result.completions[0].finish_reason == ("eos" if text is None else "stop")
    assert "".join(chunk.text for chunk in lm.stream("x\n", stop_strings=stop)) == result.text


def test_the_callers_bos_token_stands_for_an_empty_text() -> None:
    lm = LanguageModel(mixing_toy(420), byte_level())
    assert lm.generate("", bos_token_id=9, max_new_tokens=1).prompt_token_ids == (9,)
    assert lm.generate("a", bos_token_id=9, max_new_tokens=1).prompt_token_ids == lm.generate("a").prompt_token_ids
    reader = unspool.load(tiny_seq2seq("t5"))
    with pytest.raises(OptionError, match="`bos_token_id` replaces an empty text, but .* encodes the text"):
        reader.generate([5, 6], bos_token_id=9)


def test_a_stop_string_that_begins_in_the_prompt_does_not_end_an_output() -> None:
    result = recite("er said yes.").generate("Us\n", stop_strings="\ner")
    assert (result.text, result.completions[0].finish_reason) == ("er said yes.", "eos")


@pytest.mark.parametrize("stops", [None, ["fox 🦊 who"], ["🦊"], ["好, w"], ["!", "time"], [" The end."]])
def test_streamed_chunks_join_to_the_text_and_hold_whole_characters(stops: list[str] | None) -> None:
    lm = recite(TALE)
    stream = lm.stream("x\n", stop_strings=stops)
    chunks = list(stream)
    whole = lm.generate("x\n", stop_strings=stops)
    assert "".join(chunk.text for chunk in chunks) == whole.text == stream.generation.text
    assert not any("�" in chunk.text for chunk in chunks)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].finish_reason == whole.completions[0].finish_reason
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == whole.completions[0].token_ids


def test_several_outputs_and_prompts_stream_side_by_side() -> None:
    lm = recite("one fox", "two foxes", "three foxes in a row")
    stream = lm.stream(["x\n", "y\n"], do_sample=True, num_return_sequences=4, seed=3)
    texts: dict[tuple[int, int], str] = {}
    for chunk in stream:
        texts[chunk.prompt, chunk.index] = texts.get((chunk.prompt, chunk.index), "") + chunk.text
    whole = lm.generate(["x\n", "y\n"], do_sample=True, num_return_sequences=4, seed=3)
    assert texts == {(p, i): whole[p].texts[i] for p in range(2) for i in range(4)}
    assert [g.texts for g in stream.generations if g] == [g.texts for g in whole]


def test_leaving_the_loop_early_cancels_and_frees() -> None:
    lm = recite(TALE)
    for chunk in lm.stream("x\n"):
        assert chunk.text
        break
    assert live(lm) == 0 and lm.engine.idle
    stream = lm.stream("x\n")
    next(stream)
    assert live(lm) == 1
    stream.close()
    assert live(lm) == 0 and lm.engine.idle
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.generation
    with lm.stream("x\n") as inside:
        next(inside)
    assert lm.engine.idle


def test_leaving_the_loop_cancels_a_stream_that_has_a_name_too() -> None:
    lm = recite(TALE)
    stream = lm.stream("x\n")
    for _ in stream:
        break
    assert lm.engine.idle and live(lm) == 0

    async def main() -> None:
        stream = lm.astream("x\n")
        async for _ in stream:
            break
        await asyncio.sleep(0.05)
        assert lm.engine.idle and live(lm) == 0
        async with lm.astream("x\n") as stream:
            await anext(stream)
        assert lm.engine.idle

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = recite(TALE)
    forward = lm.runtime.forward

    def slow(feeds: Any) -> Any:
        time.sleep(0.05)
        return forward(feeds)

    monkeypatch.setattr(lm.runtime, "forward", slow)

    async def main() -> None:
        stream = lm.astream("x\n")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        with pytest.raises((CancelledRequest, StopAsyncIteration)):
            await anext(stream)

    asyncio.run(main())
    assert lm.generate("y\n").text == TALE
    assert lm.engine.idle and live(lm) == 0


class Sour:
    """A processor that raises for prompts of one token."""

    name = "sour"

    def start(self, context: Any) -> int:
        return len(context.prompt)

    def advance(self, state: int, token: int) -> int:
        return state

    def fork(self, state: int) -> int:
        return state

    def apply(self, states: Any, scores: Any, keys: Any) -> Any:
        if 1 in states:
            raise ZeroDivisionError("sour")
        return scores


def test_an_error_in_a_stream_cancels_the_others_async_too() -> None:
    lm = LanguageModel(mixing_toy())

    async def read() -> None:
        async for _ in lm.astream([[4], [4, 3]], processors=[Sour()]):
            pass

    with pytest.raises(ZeroDivisionError):
        asyncio.run(read())
    assert lm.engine.idle and live(lm) == 0
    with pytest.raises(ZeroDivisionError):
        list(lm.stream([[4], [4, 3]], processors=[Sour()]))
    assert lm.engine.idle and live(lm) == 0


def changed(given: Any, **members: Any) -> Any:
    """Return the object with these members."""
    vars(given).update(members)
    return given


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"strategy": object()}, "strategy", "must hold objects with name, space"),
        ({"strategy": Greedy}, "strategy", r"must hold objects, got 'the class Greedy'; pass Greedy\(\)"),
        ({"strategy": changed(Greedy(), space="probabilities")}, "strategy", "out of logits, log_probs, not 'probabil"),
        ({"strategy": changed(Greedy(), name=None)}, "strategy", "must have a text as `name`, not None"),
        ({"processors": [1]}, "processors", "Processor and docs/extending.md"),
        ({"processors": [Sour]}, "processors", r"pass Sour\(\)"),
        ({"processors": 5}, "processors", "must be a list of Processor objects"),
        ({"criteria": lambda ids, scores: True}, "criteria", "must be a list of Criterion objects"),
        ({"criteria": [lambda ids, scores: True]}, "criteria", "ends"),
        ({"config": {"top_p": 0.5}}, "config", "must be an unspool.GenerationConfig"),
    ],
)
def test_objects_that_cannot_take_part_are_refused_by_name(options: Any, option: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        LanguageModel(toy()).generate([0], **options)
    assert caught.value.option == option


@pytest.mark.parametrize("option", [{"stop_strings": ["a"]}, {"max_time": 1}, {"logprobs": 3}, {"echo": True}])
def test_next_tokens_refuses_what_says_nothing_of_one_token(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="does not change the next token alone"):
        LanguageModel(toy()).next_tokens([0], **option)


def test_a_typo_in_the_users_own_file_is_refused(tmp_path: Any) -> None:
    (tmp_path / "generation_config.json").write_text('{"tempratur": 1, "transformers_version": "5.0.0"}')
    config = GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(OptionError, match="`tempratur` is not an option.*temperature"):
        LanguageModel(toy()).generate([0], config=config)
    assert LanguageModel(toy(), config=config).generate([0], max_new_tokens=1, config=config)


@pytest.mark.parametrize("tokens", [[-1], [4], [1, 99999]])
def test_token_ids_to_score_are_checked(tokens: list[int]) -> None:
    with pytest.raises(PromptError, match="outside the vocabulary of 4"):
        LanguageModel(toy()).score([0], tokens)
    with pytest.raises(PromptError):
        recite(TALE).generate([-1])


def test_a_score_that_is_too_long_says_what_is_too_long() -> None:
    lm = LanguageModel(mixing_toy(max_length=10))
    assert len(lm.score([1] * 5, [2] * 5).logprobs) == 5
    with pytest.raises(PromptError, match="prompt and continuation have 11 tokens together and toy holds 10"):
        lm.score([1] * 5, [2] * 6)


def test_odd_prompts_are_refused_or_read() -> None:
    import numpy as np

    lm = LanguageModel(toy())
    assert lm.generate([np.int64(0), np.int32(1)], max_new_tokens=1).prompt_token_ids == (0, 1)
    with pytest.raises(PromptError, match="a text, a list of token ids"):
        lm.generate(b"abc")
    with pytest.raises(PromptError, match="cannot read the prompt"):
        recite(TALE).generate("\ud800\n")


def test_a_strategy_without_a_hypothesis_is_an_error() -> None:
    from tests.toys import Scripted
    from unspool.types import ROOT, Top, Turn

    with pytest.raises(unspool.StrategyError, match="returned no hypothesis"):
        LanguageModel(toy()).generate([0], strategy=Scripted([Turn(asks=(Top(ROOT, 1),))]))


def test_a_stream_dropped_in_the_middle_of_a_step_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may drop a stream while this very thread is inside the engine."""
    lm = recite(TALE)
    dropped = [lm.stream("x\n")]
    next(dropped[0])
    forward = lm.runtime.forward

    def dropping(feeds: Any) -> Any:
        dropped.clear()
        return forward(feeds)

    monkeypatch.setattr(lm.runtime, "forward", dropping)
    assert lm.generate("y\n").text == TALE
    assert lm.engine.idle and live(lm) == 0


def test_a_closed_stream_says_so() -> None:
    stream = recite(TALE).stream("x\n")
    stream.close()
    with pytest.raises(CancelledRequest):
        list(stream)


def test_what_is_wrong_with_a_stream_is_said_at_once() -> None:
    with pytest.raises(OptionError):
        recite(TALE).stream("x\n", top_p=2)


def test_async_streams_leave_the_event_loop_free() -> None:
    lm = recite(TALE, "Another tale, told by a toad.")

    async def read(seed: int) -> str:
        pieces = []
        async for chunk in lm.astream("x\n", do_sample=True, seed=seed):
            pieces.append(chunk.text)
            await asyncio.sleep(0)
        return "".join(pieces)

    async def main() -> list[str]:
        return await asyncio.gather(*(read(seed) for seed in range(6)))

    assert asyncio.run(main()) == [lm.generate("x\n", do_sample=True, seed=seed).text for seed in range(6)]
    assert lm.engine.idle


def test_threads_share_a_model() -> None:
    lm = LanguageModel(mixing_toy())
    alone = {seed: lm.generate([1], do_sample=True, seed=seed, max_new_tokens=20).completions for seed in range(12)}
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = lm.generate([1], do_sample=True, seed=seed, max_new_tokens=20).completions

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == alone and live(lm) == 0


def test_ctrl_c_ends_the_call_and_leaves_the_model_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(mixing_toy())
    forward, count = lm.runtime.forward, iter(range(100))

    def interrupted(feeds: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return forward(feeds)

    monkeypatch.setattr(lm.runtime, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.generate([[1], [2]], max_new_tokens=9)
    assert live(lm) == 0 and lm.engine.idle
    assert lm.generate([1], max_new_tokens=4).usage.completion_tokens == 4


def test_echo_and_logprobs_are_as_people_know_them() -> None:
    lm = recite("one fox")
    result = lm.generate("x\n", echo=True, logprobs=2)
    assert result.text == "x\none fox"
    first = result.completions[0]
    assert len(first.logprobs) == len(first.token_ids)
    assert first.top_logprobs is not None and all(len(best) == 2 for best in first.top_logprobs)
    assert [best[0].token_id for best in first.top_logprobs] == list(first.token_ids)
    prompt = result.prompt_logprobs
    assert prompt is not None and prompt[0] is None and len(prompt) == len(result.prompt_token_ids)
    assert "".join(chunk.text for chunk in lm.stream("x\n", echo=True)) == result.text
    assert lm.generate("x\n", echo=True).prompt_logprobs is None
    json.dumps(result.to_dict())


def test_prompt_logprobs_are_the_models_own() -> None:
    result = LanguageModel(toy()).generate([0, 1, 2], echo=True, logprobs=0, max_new_tokens=1, suppress_tokens=[1])
    assert result.prompt_logprobs == (None, pytest.approx(math.log(0.6)), pytest.approx(math.log(0.7)))


def test_next_tokens_is_the_exact_distribution() -> None:
    lm = LanguageModel(toy())
    raw = lm.next_tokens([0, 2])
    assert raw.probabilities.tolist() == pytest.approx(TABLE[2])
    assert raw.processed_probabilities.tolist() == pytest.approx(TABLE[2])
    cut = lm.next_tokens([0, 2], temperature=0.5, top_p=0.8, suppress_tokens=[2], limit=4)
    entries = {entry.token_id: entry for entry in cut}
    # P = .1 .2 .2 .5, token 2 out, squared: .01 .04 - .25 of .30; 0.83 of it is token 3, which alone reaches 0.8.
    assert {token: entry.cut_by for token, entry in entries.items()} == {
        0: "top_p",
        1: "top_p",
        2: "suppress_tokens",
        3: None,
    }
    assert entries[3].processed_probability == pytest.approx(1.0)
    assert cut.processors == ("suppress_tokens", "temperature", "top_p")
    assert lm.engine.idle


def test_next_tokens_agrees_with_what_is_drawn() -> None:
    lm = LanguageModel(mixing_toy())
    shown = lm.next_tokens([4, 2], temperature=0.8, top_k=5, repetition_penalty=1.4)
    draws = lm.generate(
        [4, 2], temperature=0.8, top_k=5, repetition_penalty=1.4, num_return_sequences=3000, max_new_tokens=1, seed=1
    )
    counts = [0] * 17
    for completion in draws.completions:
        counts[completion.token_ids[0]] += 1
    expected = [3000 * p for p in shown.processed_probabilities.tolist()]
    assert all(count == 0 for count, e in zip(counts, expected, strict=True) if e == 0)
    statistic = sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True) if e > 0)
    assert statistic < 31  # chi-square, 4 degrees of freedom: exceeded with probability 3e-6


def test_score_is_the_log_probability_of_a_text() -> None:
    lm = LanguageModel(toy())
    score = lm.score([0], [1, 2, 3])
    assert score.logprobs == pytest.approx([math.log(0.6), math.log(0.7), math.log(0.5)])
    assert lm.score([0], [1]).total == pytest.approx(math.log(0.6))
    speaker = recite("one fox")
    text = speaker.score("x\n", "one fox")
    assert "".join(text.tokens) == "one fox"
    assert text.total == pytest.approx(0.0, abs=0.02)
    with pytest.raises(PromptError, match="nothing to score"):
        speaker.score("x\n", "")


def test_the_first_error_cancels_the_others_and_is_raised() -> None:
    lm = LanguageModel(toy(max_tokens=20))
    with pytest.raises(CapacityError):
        lm.generate([[0], [0]], max_new_tokens=25)
    assert lm.engine.idle
    with pytest.raises(unspool.NumericsError):
        lm.generate([[0], [1]], suppress_tokens=[0, 1, 2, 3], max_new_tokens=5)
    assert lm.engine.idle and live(lm) == 0


def test_a_strategy_object_is_used_as_it_is() -> None:
    class Mine(Greedy):
        name = "mine"

    result = LanguageModel(toy()).generate([0], strategy=Mine(), max_new_tokens=3)
    assert result.strategy == "mine"


def test_the_default_length_is_256_and_says_so() -> None:
    result = LanguageModel(mixing_toy()).generate([1], ignore_eos=True)
    assert result.usage.completion_tokens == 256
    assert result.completions[0].finish_reason == "length"


def test_a_progress_bar_shows_where_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    lm = LanguageModel(mixing_toy())
    lm.generate([[1], [2], [3]], max_new_tokens=2)
    assert capsys.readouterr().err == ""
    lm.generate([[1], [2], [3]], max_new_tokens=2, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_forward_passes_are_those_in_which_a_prompt_took_part() -> None:
    lm = LanguageModel(mixing_toy())
    alone = lm.generate([1, 2], max_new_tokens=6, ignore_eos=True)
    assert alone.usage.forward_passes == lm.engine.timing.passes == 6, "one per token, the first with the prompt"
    before = lm.engine.timing.passes
    first, second = lm.generate([[1, 2], [3]], max_new_tokens=[3, 5], num_beams=[1, 2], ignore_eos=True)
    assert (first.usage.forward_passes, second.usage.forward_passes) == (3, 5)
    assert lm.engine.timing.passes - before == 5, "a shared pass counts for both"
    assisted = lm.generate([1, 2], max_new_tokens=6, ignore_eos=True, assistant_model=LanguageModel(mixing_toy()))
    assert assisted.usage.forward_passes < 6, "passes of the draft model do not count"
