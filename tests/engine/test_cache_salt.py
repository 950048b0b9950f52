"""Prefix caching under salts: requests share cached prefixes under one salt only, and results count them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.test_prefix_sharing import SYSTEM, TOGETHER, Counted, counted, questions, tokens_of
from tests.tiny_models import tiny_model
from tests.toys import drain, request
from unspool import LanguageModel
from unspool.engine import Engine, Request
from unspool.errors import OptionError
from unspool.prefixes import common_prefix
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.types import Finished

OTHERS = [request([*SYSTEM, 5], max_new_tokens=1), request([*SYSTEM, 6], max_new_tokens=1)]


def salted(wanted: Sequence[Request], *salts: str) -> list[Request]:
    return [replace(each, cache_salt=salt) for each, salt in zip(wanted, salts, strict=True)]


def run(runtime: Counted, wanted: Sequence[Request], gap: int | None = 0) -> list[Finished]:
    """Run requests that come `gap` steps apart (None: one after the other); returns their ends in order."""
    engine, events, numbers = Engine(runtime), [], []
    for each in wanted:
        numbers.append(engine.submit(each))
        events += drain(engine) if gap is None else [event for _ in range(gap) for event in engine.step()]
    ends = {event.request: event for event in events + drain(engine) if isinstance(event, Finished)}
    return [ends[number] for number in numbers]


@pytest.mark.parametrize("when", TOGETHER)
def test_two_salts_never_share_and_one_does(when: str) -> None:
    gap = TOGETHER[when]
    for salts, cached in ((("", ""), len(SYSTEM)), (("a", "a"), len(SYSTEM)), (("a", "b"), 0), (("", "a"), 0)):
        runtime = counted()
        first, second = run(runtime, salted(OTHERS, *salts), gap)
        assert (first.cached_tokens, second.cached_tokens) == (0, cached), salts
        assert runtime.num_fed == 2 * (len(SYSTEM) + 1) - cached
        assert gap != 0 or len(runtime.passes) == (2 if cached else 1), "no request waits for another salt"
        runtime.check()


def test_a_salt_changes_no_token() -> None:
    wanted = questions(6, max_new_tokens=8, num_beams=2)
    plain = tokens_of([each.outputs for each in run(counted(plain=True), wanted)])
    for salts in (["a"] * 6, list("abcabc")):
        assert tokens_of([each.outputs for each in run(counted(), salted(wanted, *salts))]) == plain


@pytest.mark.parametrize("when", TOGETHER)
@pytest.mark.parametrize("seed", range(3))
def test_no_request_has_more_than_its_salt_allows(seed: int, when: str) -> None:
    rng = random.Random(seed)
    texts = [[rng.randrange(1, 90) for _ in range(rng.randrange(20, 60))] for _ in range(3)]
    wanted = []
    for number in range(24):
        prompt = [*rng.choice(texts), *rng.choices(range(1, 90), k=rng.randrange(1, 5))]
        wanted.append(replace(request(prompt, seed=number, max_new_tokens=1), cache_salt=rng.choice(["", "a", "b"])))
    runtime = counted()
    counts = [each.cached_tokens for each in run(runtime, wanted, TOGETHER[when])]
    assert runtime.num_fed == sum(len(each.prompt) for each in wanted) - sum(counts)
    for index, (each, count) in enumerate(zip(wanted, counts, strict=True)):
        others = [other for other in wanted[:index] if other.cache_salt == each.cache_salt]
        most = max((common_prefix(each.prompt, other.prompt) for other in others), default=0)
        assert count <= most
    assert sum(map(bool, counts)) >= 6, "hardly anything was shared"


def test_draft_models_and_negative_prompts_keep_the_salt() -> None:
    draft = Counted(DecoderRuntime(tiny_model("gpt2", seed=1), owns_model=True))
    wanted = [
        request([*SYSTEM, last], max_new_tokens=1, own={"assistant": draft, "negative_prompt": None}) for last in (5, 6)
    ]
    guided = [replace(each, negative_prompt=(*SYSTEM[::-1], 3)) for each in OTHERS]
    guided = [replace(each, config=each.config.replace(guidance_scale=1.5)) for each in guided]
    for requests, count in ((wanted, 1), (guided, 2)):
        fed = {}
        for salts in ("aa", "ab"):
            draft.passes.clear()
            runtime = counted()
            run(runtime, salted(requests, *salts), None)
            fed[salts] = runtime.num_fed + draft.num_fed
        assert fed["ab"] - fed["aa"] >= count * (len(SYSTEM) - 1)


def test_results_in_python_count_cached_tokens() -> None:
    lm = LanguageModel(DecoderRuntime(tiny_model("gpt2"), owns_model=True))
    prompts = [[*each.prompt] for each in OTHERS]
    for salt, other, cached in (("ann", "bob", 0), ("eve", "eve", len(SYSTEM))):
        assert lm.generate(prompts[0], max_new_tokens=2, cache_salt=salt).usage.cached_tokens == 0
        found = lm.generate(prompts[1], max_new_tokens=2, cache_salt=other)
        assert found.usage.cached_tokens == found.to_dict()["usage"]["cached_tokens"] == cached
    stream = lm.stream(prompts[1], max_new_tokens=2, cache_salt="eve")
    assert list(stream) and stream.generation.usage.cached_tokens == len(SYSTEM)
    both = lm.generate(prompts, max_new_tokens=2, cache_salt="zoe")
    assert [each.usage.cached_tokens for each in both] == [0, len(SYSTEM)]
    with pytest.raises(OptionError, match="cache_salt"):
        lm.generate(prompts[0], cache_salt=3)
