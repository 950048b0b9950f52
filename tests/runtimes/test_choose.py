"""Which path runs a model, what it says of it, and the model whose rotary embedding changes on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import unspool
from tests.runtimes.feeds import feed
from tests.runtimes.generic.test_runtime import READING_A_PLACE, Failure, wander, written
from tests.sampling import sampled
from tests.tiny_models import FAMILIES, GENERAL, OTHERS, RECOMPUTED, VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.errors import CapacityError, ModelError
from unspool.protocols import Runtime
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.generic.long_rope import LongRopeRuntime
from unspool.runtimes.generic.runtime import GenericRuntime
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime

ORIGINAL = 12
LONGROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": ORIGINAL,
        "factor": 20.0,
    },
    "original_max_position_embeddings": ORIGINAL,
    "sliding_window": None,
}
DYNAMIC: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "max_position_embeddings": ORIGINAL,
}
STRETCHED = {"phi3": LONGROPE, "llama": DYNAMIC}


def text(length: int) -> list[int]:
    rng = random.Random(length)
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


def own_rows(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return what follows each token by a forward that ends with it. --> [tokens, vocab]"""
    with torch.no_grad():
        rows = [model(torch.tensor([tokens[: at + 1]]), use_cache=False).logits[0, -1] for at in range(len(tokens))]
    return torch.stack(rows)


@pytest.mark.parametrize("family", sampled(list(FAMILIES), 6))
def test_what_the_slot_cache_can_serve_runs_there(family: str) -> None:
    runtime = runtime_of(tiny_model(family), owns_model=True, max_cache_tokens=50, max_sequences=3)
    assert isinstance(runtime, DecoderRuntime)
    assert (runtime.info.max_tokens, runtime.info.max_sequences) == (50, 3)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_sliding_windows_stay_on_the_slot_cache(family: str) -> None:
    assert isinstance(runtime_of(tiny_model(family), owns_model=False), DecoderRuntime)


@pytest.mark.parametrize("family", sampled(list(OTHERS), 8))
@pytest.mark.parametrize("owns_model", [True, False])
def test_the_path_says_which_one_it_is_and_why_not_a_faster_one(family: str, owns_model: bool) -> None:
    model = tiny_model(family)
    runtime = runtime_of(model, owns_model=owns_model)
    assert type(runtime) is GenericRuntime
    assert isinstance(runtime, Runtime) and not runtime.info.needs_source
    name = "generic backend" if family in GENERAL else "recomputation"
    assert runtime.info.backend.startswith(name) and type(model).__name__ in runtime.info.backend
    assert "not supported in this version" not in runtime.info.backend or family == "bert"
    assert runtime.info.vocab_size == VOCAB_SIZE and runtime.info.eos_token_ids


def test_what_was_tried_before_is_told() -> None:
    paths = {family: runtime_of(tiny_model(family), owns_model=True).info.backend for family in RECOMPUTED}
    takes = {family for family, path in paths.items() if "takes no cache" in path}
    returns = {family for family, path in paths.items() if "returns no cache" in path}
    assert takes | returns == set(RECOMPUTED)
    # From 5.24 on XLM takes a cache that it does not return.
    assert takes - {"xlm"} == {"openai", "xlnet"} and returns - {"xlm"} == {"recurrent_gemma", "bert"}
    assert {family for family, path in paths.items() if "one pass for each position" in path} == READING_A_PLACE


def test_a_model_with_a_source_has_a_runtime_of_its_own() -> None:
    assert isinstance(runtime_of(tiny_seq2seq("t5"), owns_model=False, max_sequences=5), Seq2SeqRuntime)


def test_a_model_that_fails_its_trial_on_the_slot_cache_falls_back_to_its_own_cache() -> None:
    model, tokens = tiny_model("phimoe"), text(9)
    expected, implementation = own_rows(model, tokens), model.config._attn_implementation
    runtime = runtime_of(model, owns_model=True)
    assert isinstance(runtime, GenericRuntime) and "other results on the slot cache" in runtime.info.backend
    assert model.config._attn_implementation == implementation
    rows = runtime.forward([feed(0, tokens)]).logits
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)


def test_a_model_that_runs_nowhere_is_refused_with_every_reason() -> None:
    model = tiny_model("bloom")
    model.lm_head = nn.Linear(3, 5)
    with pytest.raises(ModelError, match="attention interface; .*mat1 and mat2.*; .*mat1 and mat2"):
        runtime_of(model, owns_model=False)


def test_what_is_no_generating_model_is_refused() -> None:
    with pytest.raises(ModelError, match="not a transformers model"):
        runtime_of(nn.Linear(2, 2), owns_model=False)
    with pytest.raises(ModelError, match="no language-model head"):
        runtime_of(tiny_model("bloom").transformer, owns_model=False)


def test_a_model_that_cannot_be_copied_runs_as_it_is_and_is_left_as_it_was() -> None:
    model = tiny_model("bloom").train()
    expected = own_rows(tiny_model("bloom"), text(6))
    model.cached_loss = model(torch.tensor([[5, 6]])).logits.sum()
    runtime: Any = runtime_of(model, owns_model=False)
    assert runtime.in_place and "caller's own module" in runtime.info.backend
    rows = runtime.forward([feed(0, text(6))]).logits
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize("owns_model", [True, False])
@pytest.mark.parametrize("family", STRETCHED)
def test_rows_on_both_sides_of_the_original_length_are_the_models_own(family: str, owns_model: bool) -> None:
    changes = STRETCHED[family]
    runtime = runtime_of(tiny_model(family, **changes), owns_model=owns_model)
    assert isinstance(runtime, LongRopeRuntime) and f"up to {ORIGINAL} tokens slot cache" in runtime.info.backend
    model, rng = tiny_model(family, **changes), random.Random(1)
    texts = [text(26), text(ORIGINAL + 1), text(5)]
    for tokens, rows in zip(texts, wander(runtime, texts, rng), strict=True):
        expected = own_rows(model, tokens)
        for at, row in rows.items():
            torch.testing.assert_close(row, expected[at], atol=1e-4, rtol=0)


def test_the_two_lengths_differ() -> None:
    """What the tests above compare would else be the same on both sides."""
    for family, changes in STRETCHED.items():
        changed, plain = own_rows(tiny_model(family, **changes), text(20)), own_rows(tiny_model(family), text(20))
        assert torch.allclose(changed[:ORIGINAL], plain[:ORIGINAL], atol=1e-4) or family == "phi3"
        assert not torch.allclose(changed[ORIGINAL:], plain[ORIGINAL:], atol=0.01)


@pytest.mark.parametrize("family", STRETCHED)
@pytest.mark.parametrize("length", [5, ORIGINAL, 20])
def test_a_stretched_model_writes_what_transformers_writes(family: str, length: int) -> None:
    runtime, ids = runtime_of(tiny_model(family, **STRETCHED[family]), owns_model=False), torch.tensor([text(length)])
    for options in ({"max_new_tokens": 16}, {"max_new_tokens": 16, "num_beams": 3}):
        # A model of its own, since angles stay what the longest sequence before needed; and no cache, since that goes
        # on with keys that were turned by the angles of a shorter one.
        model = tiny_model(family, **STRETCHED[family])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=False, use_cache=False, **options
        )
        expected = found[0, length:].tolist()
        end = expected.index(2) + 1 if 2 in expected else len(expected)
        assert written(runtime, [text(length), text(7)], **options)[0] == expected[:end]


def test_limits_of_a_stretched_model() -> None:
    runtime = runtime_of(tiny_model("phi3", **LONGROPE), owns_model=True, max_cache_tokens=40, max_sequences=2)
    assert (runtime.info.max_length, runtime.info.max_tokens, runtime.info.max_sequences) == (256, 40, 2)
    assert runtime_of(tiny_model("llama", **DYNAMIC), owns_model=True).info.max_length == 4 * ORIGINAL
    runtime.forward([feed(0, [5] * 30)])
    with pytest.raises(CapacityError, match="at most 40 tokens; 41"):
        runtime.forward([feed(1, [5] * 11)])
    with pytest.raises(CapacityError, match="at most 40 tokens; 60"):
        runtime.fork(0, 1)


def test_a_stretched_forward_that_raises_leaves_every_sequence_as_it_was() -> None:
    runtime: Any = runtime_of(tiny_model("phi3", **LONGROPE), owns_model=False)
    model, first, second = tiny_model("phi3", **LONGROPE), text(10), text(15)
    runtime.forward([feed(0, first), feed(1, second)])

    def fail(*_: Any) -> None:
        raise Failure

    hook = runtime._long._wrapped.module.lm_head.register_forward_hook(fail)
    with pytest.raises(Failure):
        runtime.forward([feed(0, [5, 5, 5, 5]), feed(1, [6]), feed(2, [7])])
    hook.remove()
    rows = runtime.forward([feed(0, [8, 9, 3, 4]), feed(1, [9]), feed(2, [4])]).logits
    expected = [own_rows(model, [*first, 8, 9, 3, 4])[-4:], own_rows(model, [*second, 9])[-1:], own_rows(model, [4])]
    torch.testing.assert_close(rows, torch.cat(expected), atol=1e-4, rtol=0)


# --- models with few tokens or few positions --------------------------------------------------------------------------


@pytest.mark.parametrize("num_positions", [2, 3, 5, 12])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gptj", "gpt_neo"])
def test_a_trial_stays_within_the_positions_and_the_vocabulary(family: str, num_positions: int) -> None:
    name = "n_positions" if family in ("gpt2", "gptj") else "max_position_embeddings"
    model = tiny_model(family, vocab_size=3, eos_token_id=None, **{name: num_positions})
    given = torch.tensor([[1]])
    expected = model.generate(given, max_new_tokens=num_positions - 1, do_sample=False, pad_token_id=0)
    for _ in range(30 // num_positions):  # passes enough for a recording
        found = unspool.generate(model, given, max_new_tokens=num_positions - 1)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("num_positions", [2, 3])
@pytest.mark.parametrize("family", ["bart", "marian"])
def test_a_trial_of_a_decoder_stays_within_its_positions(family: str, num_positions: int) -> None:
    model = tiny_seq2seq(family, vocab_size=6, max_position_embeddings=num_positions)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    given, length = torch.tensor([[1]]), num_positions - 1
    expected = model.generate(given, max_new_tokens=length, do_sample=False, num_beams=1)
    assert unspool.generate(model, given, max_new_tokens=length).tolist() == expected.tolist()


def test_a_model_without_known_embeddings_is_refused_by_its_class() -> None:
    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    part |= {"head_dim": 16, "intermediate_size": 32, "max_position_embeddings": 32}
    cross = {f"cross_{name}": part[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    decoder = {**part, **cross, "cross_hidden_size": 32, "vocab_size": 1028, "num_channels": 2}
    config = transformers.DiaConfig(
        encoder_config={**part, "vocab_size": 97}, decoder_config=decoder, delay_pattern=[0, 1]
    )
    model = transformers.DiaForConditionalGeneration(config).eval()
    with pytest.raises(ModelError, match=r"DiaForConditionalGeneration does not tell its embeddings .* own `generate`"):
        unspool.generate(model, torch.tensor([[5, 6, 7]]), max_new_tokens=3)


@pytest.mark.parametrize(("family", "calls"), [("llama", 3), ("gpt2", 3), ("t5", 3), ("bart", 3), ("mamba", 4)])
def test_a_probe_takes_few_calls_of_the_model(monkeypatch: pytest.MonkeyPatch, family: str, calls: int) -> None:
    """Each call reads the embeddings of tokens once."""
    model = tiny_seq2seq(family) if family in ("t5", "bart") else tiny_model(family)
    size, found = len(model.get_input_embeddings().weight), list[None]()
    embedding = torch.nn.functional.embedding

    def counted(ids: torch.Tensor, weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        found.extend([None] * (len(weight) == size))
        return embedding(ids, weight, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "embedding", counted)
    runtime_of(model, owns_model=False)
    assert len(found) == calls
