"""Random configs and prompts on a toy model: each either writes something valid, or is refused by the option's name."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toys import drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.errors import NumericsError, OptionError, PromptError
from unspool.types import Output

VOCAB = 17
END = VOCAB - 1
LONGEST = 40

tokens = st.integers(0, VOCAB - 1)
some = st.lists(tokens, min_size=1, max_size=4)

SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    "top_k": st.sampled_from([0, 1, 3, 100]),
    "top_p": st.sampled_from([0.01, 0.5, 0.99, 1.0, 1.2]),
    "min_p": st.sampled_from([0.0, 0.2, 1.0]),
    "typical_p": st.sampled_from([0.1, 0.9]),
    "epsilon_cutoff": st.sampled_from([0.001, 0.5]),
    "eta_cutoff": st.sampled_from([0.001, 0.5]),
    "top_h": st.sampled_from([0.1, 0.9]),
    "top_n_sigma": st.sampled_from([0.1, 2.0, -1.0]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "num_return_sequences": st.integers(0, 3),
    "do_sample": st.booleans(),
}
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "max_new_tokens": st.integers(0, 12),
    "max_length": st.integers(1, 20),
    "min_new_tokens": st.integers(0, 8),
    "min_length": st.integers(0, 12),
    "repetition_penalty": st.sampled_from([0.0, 0.7, 1.5]),
    "presence_penalty": st.sampled_from([-1.0, 1.0]),
    "frequency_penalty": st.sampled_from([-1.0, 1.0]),
    "no_repeat_ngram_size": st.integers(0, 3),
    "suppress_tokens": some,
    "begin_suppress_tokens": some,
    "bad_words_ids": st.lists(st.lists(st.integers(0, VOCAB), min_size=1, max_size=3), min_size=1, max_size=3),
    "sequence_bias": st.dictionaries(st.tuples(tokens, tokens), st.floats(-3, 3), min_size=1, max_size=3),
    "forced_eos_token_id": tokens,
    "eos_token_id": st.one_of(tokens, some),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.sampled_from([1.1, 2.0])),
    "remove_invalid_values": st.booleans(),
    "renormalize_logits": st.booleans(),
    "ignore_eos": st.booleans(),
    "logprobs": st.integers(0, 4),
    "num_beams": st.integers(1, 3),
    "encoder_repetition_penalty": st.sampled_from([0.5, 2.0]),
}
POOL = SAMPLING | OTHERS


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(POOL)), max_size=6, unique=True))
    return {name: draw(POOL[name]) for name in names}


def check(output: Output, prompt: list[int], asked: dict[str, Any]) -> None:
    """Assert what the options promise of an output."""
    written, total = list(output.token_ids), [*prompt, *output.token_ids]
    assert len(written) >= 1 and all(0 <= token < VOCAB for token in written)
    assert len(total) <= LONGEST
    assert len(written) <= (asked.get("max_new_tokens") or LONGEST)
    assert len(total) <= (asked.get("max_length") or LONGEST)
    assert len(output.logprobs) == len(output.scores) == len(written)
    forced = asked.get("forced_eos_token_id")
    body = written[:-1] if forced is not None else written
    assert not set(body) & set(asked.get("suppress_tokens", ()))
    assert written[0] not in asked.get("begin_suppress_tokens", ()) or forced is not None
    for word in asked.get("bad_words_ids", ()):
        if len(word) == 1 and word[0] != END and "eos_token_id" not in asked:
            assert word[0] not in body
    size = asked.get("no_repeat_ngram_size")
    if size and forced is None:
        counts = Counter(tuple(total[i : i + size]) for i in range(len(total) - size + 1))
        fresh = {tuple(total[i - size + 1 : i + 1]) for i in range(len(prompt), len(total)) if i >= size - 1}
        assert all(counts[gram] == 1 for gram in fresh)
    assert output.finish_reason in ("eos", "length")
    if output.finish_reason == "eos":
        eos = asked.get("eos_token_id", END)
        assert written[-1] in (eos if isinstance(eos, list) else [eos])
        assert not asked.get("ignore_eos")
        if forced is None:
            assert len(written) > asked.get("min_new_tokens", 0) - 1


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(asked=options(), prompt=st.lists(tokens, max_size=6), seed=st.integers(-(2**70), 2**70))
def test_any_request_writes_something_valid_or_is_refused_by_name(
    asked: dict[str, Any], prompt: list[int], seed: int
) -> None:
    engine = Engine(mixing_toy(VOCAB, max_length=LONGEST))
    try:
        number = engine.submit(request(prompt, seed=seed, **asked))
    except OptionError as error:
        partners = {"strategy", "max_new_tokens", "max_length", "min_new_tokens", "min_length"}
        assert error.option in asked.keys() | partners
        assert f"`{error.option}`" in str(error)
        return
    except PromptError:
        assert not prompt
        return
    outcome = results(drain(engine))[number]
    if isinstance(outcome, NumericsError):
        assert "every token is forbidden" in str(outcome)
        return
    assert isinstance(outcome, tuple), outcome
    assert len(outcome) == asked.get("num_return_sequences", 1)
    for output in outcome:
        check(output, prompt, asked)
