"""The slot cache against each family's own forward and generate, and against itself in other company."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.runtimes.feeds import feed, last, prompts
from tests.runtimes.kv.test_attention_plan import PATHS
from tests.tiny_models import FAMILIES, UNSUPPORTED, VOCAB_SIZE, tiny_model
from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.model_info import slot_cache_obstacle
from unspool.types import Source

INVARIANT_FAMILIES = [name for name in FAMILIES if name not in {"mixtral", "gpt_oss", "qwen3_moe"}]


def make(family: str, **options: Any) -> DecoderRuntime:
    return DecoderRuntime(tiny_model(family), owns_model=True, **options)


def own_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def wander(runtime: DecoderRuntime, texts: list[list[int]], rng: random.Random, **options: Any) -> list[torch.Tensor]:
    """Feed the texts in random pieces and company, with forks and truncations on the way. Returns all their logits."""
    seqs, num_seqs = list(range(len(texts))), len(texts)
    done, found = [0] * len(texts), [torch.empty(len(text), VOCAB_SIZE) for text in texts]
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        feeds, places = [], []
        for text_index, text in enumerate(texts):
            if done[text_index] < len(text) and rng.random() < 0.7:
                piece = text[done[text_index] :][: rng.choice([1, 1, 1, 2, 7, 20])]
                feeds.append(feed(seqs[text_index], piece, **options))
                places.append(text_index)
        rows = runtime.forward(feeds).logits.split([len(one.tokens) for one in feeds]) if feeds else ()
        for text_index, one, logits in zip(places, feeds, rows, strict=True):
            found[text_index][done[text_index] : done[text_index] + len(one.tokens)] = logits
            done[text_index] += len(one.tokens)
        text_index = rng.randrange(len(texts))
        if done[text_index] and rng.random() < 0.4:
            done[text_index] = runtime.truncate(seqs[text_index], max(1, done[text_index] - rng.choice([0, 1, 5])))
        if done[text_index] and rng.random() < 0.4:
            runtime.fork(seqs[text_index], num_seqs)
            runtime.release(seqs[text_index])
            seqs[text_index], num_seqs = num_seqs, num_seqs + 1
        runtime.check()
    for seq in seqs:
        runtime.release(seq)
    runtime.check()
    return found


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_company_in_any_pieces_gives_the_logits_of_a_plain_forward(family: str, attention: Any) -> None:
    model, rng = tiny_model(family), random.Random(1)
    texts = prompts(rng, (1, 5, 33, 80, 2, 17))
    expected = [own_logits(model, text) for text in texts]
    for logits, plain in zip(wander(make(family, attention=attention), texts, rng), expected, strict=True):
        torch.testing.assert_close(logits, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model, runtime = tiny_model(family), make(family)
    texts = prompts(random.Random(2), (3, 9, 1))
    rows = runtime.forward([last(seq, text) for seq, text in enumerate(texts)]).logits
    ours = [[int(row.argmax())] for row in rows]
    for _ in range(11):
        rows = runtime.forward([last(seq, tokens[-1:]) for seq, tokens in enumerate(ours)]).logits
        for tokens, row in zip(ours, rows, strict=True):
            tokens.append(int(row.argmax()))
    for text, tokens in zip(texts, ours, strict=True):
        ids = torch.tensor([text])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert tokens == theirs[0, len(text) :].tolist()


@pytest.mark.parametrize("family", INVARIANT_FAMILIES)
def test_invariant_rows_are_bit_equal_alone_in_company_and_in_pieces(family: str) -> None:
    runtime, rng = make(family), random.Random(3)
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised on this machine: {runtime.info.backend}")
    texts = prompts(rng, (1, 6, 30, 70))
    alone = []
    for seq, text in enumerate(texts):
        alone.append(runtime.forward([feed(100 + seq, text, invariant=True)]).logits)
        runtime.release(100 + seq)
    for _ in range(2):
        # What other requests leave behind in free slots must not come back in a fork.
        wander(runtime, [text[:-1] for text in texts[1:]], rng)
        for expected, logits in zip(alone, wander(runtime, texts, rng, invariant=True), strict=True):
            assert torch.equal(logits, expected)


def test_invariant_rows_stay_bit_equal_beside_rows_that_are_not() -> None:
    runtime, (text, other) = make("llama"), prompts(random.Random(4), (9, 20))
    expected = torch.cat([runtime.forward([feed(0, [token], invariant=True)]).logits for token in text])
    mixed = runtime.forward([feed(1, other), feed(2, text, invariant=True)]).logits
    assert torch.equal(mixed[len(other) :], expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_rows_of_a_wider_model_are_bit_equal_on_several_threads(dtype: torch.dtype) -> None:
    changes = {"hidden_size": 448, "intermediate_size": 1376, "num_attention_heads": 7, "num_key_value_heads": 1}
    runtime = DecoderRuntime(tiny_model("llama", dtype=dtype, **changes), owns_model=True)
    texts = prompts(random.Random(10), (150, 60, 37))
    torch.set_num_threads(2)
    try:
        pieces = [[runtime.forward([feed(9, [token], invariant=True)]).logits for token in text] for text in texts[:1]]
        runtime.release(9)
        for _ in range(2):
            found = wander(runtime, texts, random.Random(11), invariant=True)
            assert torch.equal(found[0], torch.cat(pieces[0]))
    finally:
        torch.set_num_threads(1)


def test_where_rows_depend_on_company_an_invariant_feed_is_refused() -> None:
    runtime = make("mixtral")
    assert not runtime.info.batch_invariant
    with pytest.raises(ModelError, match="independent of other rows: it routes rows to experts"):
        runtime.forward([feed(0, [5], invariant=True)])
    assert not make("llama", attention="masked").info.batch_invariant


# PhiMoE keeps its window to itself, so its trial refuses it, not its class.
@pytest.mark.parametrize("family", [family for family in UNSUPPORTED if family != "phimoe"])
def test_a_family_outside_the_attention_interface_is_refused_by_name(family: str) -> None:
    model = tiny_model(family)
    reason = slot_cache_obstacle(model)
    assert reason is not None and type(model).__name__ in reason
    with pytest.raises(ModelError, match=type(model).__name__):
        DecoderRuntime(model, owns_model=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_causal": False}, "both directions"),
        ({"attention_chunk_size": 4}, "in chunks"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_a_config_that_the_slots_cannot_serve_is_refused(changes: dict[str, Any], reason: str) -> None:
    model = tiny_model("llama")
    assert slot_cache_obstacle(model) is None
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert reason in (slot_cache_obstacle(model) or "")


def test_a_model_that_does_not_do_what_it_declares_is_found_out_by_the_trial() -> None:
    model = tiny_model("llama")
    # An attention that looks one token further than the interface is told of.
    original = type(model.model.layers[0].self_attn).forward

    def forward(self: Any, hidden_states: torch.Tensor, **options: Any) -> Any:
        return original(self, hidden_states + hidden_states.cumsum(1), **options)

    model.model.layers[0].self_attn.forward = forward.__get__(model.model.layers[0].self_attn)
    with pytest.raises(ModelError, match="other results"):
        DecoderRuntime(model, owns_model=True)


def test_it_is_a_runtime_and_says_what_it_is() -> None:
    runtime = make("llama", max_cache_tokens=1000, max_sequences=7)
    assert isinstance(runtime, Runtime)
    info = runtime.info
    assert (info.vocab_size, info.max_length, info.max_sequences, info.max_tokens) == (VOCAB_SIZE, 256, 7, 1000)
    assert (info.eos_token_ids, info.bos_token_id, info.pad_token_id) == ((2,), 1, 0)
    assert not info.needs_source
    assert info.backend.startswith("slot cache: transformers attention interface, float32, ")
    assert "linear layers packed" in info.backend
    # 2 layers, keys and values, 2 heads of 8 numbers of 4 bytes
    assert runtime.bytes_per_token == info.bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_rotary_embedding_that_grows_bounds_the_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    runtime = DecoderRuntime(tiny_model("llama", rope_parameters=rope), owns_model=True)
    assert runtime.info.max_length == 64
    assert "at most 64 tokens" in runtime.info.backend


def own_states(model: Any, tokens: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return what transformers calls `hidden_states`: [tokens, width] before each layer, and what the head reads."""
    with torch.no_grad():
        return tuple(states[0] for states in model(torch.tensor([tokens]), output_hidden_states=True).hidden_states)


def own_looks(model: Any, tokens: Sequence[int], layer: int) -> torch.Tensor:
    """Return what transformers' DoLa reads of an inner layer. --> [tokens, vocab]"""
    with torch.no_grad():
        return model.get_output_embeddings()(own_states(model, tokens)[layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_the_last_ones_of_transformers(family: str) -> None:
    model, runtime = tiny_model(family), make(family)
    first, second = prompts(random.Random(5), (8, 11))
    assert runtime.info.hidden_states
    rows = runtime.forward([feed(0, first, asked=(2, 7)), feed(1, second, asked=(4,), hidden=True)])
    assert rows.hidden is not None and rows.hidden.dtype == torch.float32
    torch.testing.assert_close(rows.hidden, own_states(model, second)[-1], atol=2e-5, rtol=0)
    logits = torch.cat([own_logits(model, first)[[2, 7]], own_logits(model, second)[[4]]])
    torch.testing.assert_close(rows.logits, logits, atol=2e-5, rtol=0)
    assert runtime.forward([feed(0, [5])]).hidden is None


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt"])
def test_inner_rows_are_what_the_head_of_transformers_makes_of_the_hidden_states(family: str, attention: Any) -> None:
    model, runtime = tiny_model(family), make(family, attention=attention)
    num_layers = model.config.num_hidden_layers
    assert runtime.info.num_layers == num_layers
    assert runtime.info.tied_head == model.config.tie_word_embeddings
    first, second, third = prompts(random.Random(6), (9, 5, 12))
    every = tuple(range(num_layers))
    runtime.forward([feed(0, first[:6], asked=(), layers=every)])
    rows = runtime.forward(
        [
            feed(0, first[6:], asked=(0, 2), layers=every),
            feed(1, second),
            feed(2, third, asked=(11,), layers=(1,), hidden=True),
        ]
    )
    expected = [own_looks(model, first, layer)[row] for row in (6, 8) for layer in every]
    expected.append(own_looks(model, third, 1)[11])
    assert rows.inner is not None and rows.inner.dtype == torch.float32
    torch.testing.assert_close(rows.inner, torch.stack(expected), atol=3e-5, rtol=0)
    assert runtime.forward([feed(0, [5])]).inner is None


@pytest.mark.parametrize(("tied", "family"), [(True, "llama"), (False, "llama"), (True, "gpt2")])
def test_what_the_user_owns_is_read_like_what_is_ours_and_keeps_no_hook(tied: bool, family: str) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    expected = own_looks(model, [5, 9, 11], 1)[-1:], own_states(model, [5, 9, 11])[-1]
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    assert runtime.info.tied_head is tied
    rows = runtime.forward([last(0, [5, 9, 11], layers=(1,), hidden=True)])
    for found, wanted in zip((rows.inner, rows.hidden), expected, strict=True):
        assert found is not None and not found.is_inference() and not found.requires_grad
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    assert not any(module._forward_pre_hooks for module in runtime._decoder_model.module.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_prompt_whose_hidden_states_are_wanted_computes_the_asked_logits_alone() -> None:
    runtime, seen = make("llama"), []
    head = runtime._decoder_model.module.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    rows = runtime.forward([last(0, [5] * 200, hidden=True), feed(1, [6] * 20, asked=(), hidden=True)])
    assert rows.hidden is not None and rows.hidden.shape == (220, 32)
    assert seen == [(1, 1, VOCAB_SIZE)]


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_states_of_an_invariant_row_are_bit_equal_alone_and_in_company(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOOL_KERNELS", kernels)
    runtime, options = make("llama"), {"layers": (1,), "hidden": True, "invariant": True}
    alone = runtime.forward([last(0, [5], **options)])
    others = [last(seq, [seq] * 5, **options) for seq in range(1, 4)]
    beside = runtime.forward([*others, last(9, [5], **options)])
    for one, other in zip(alone, beside, strict=True):
        assert one is not None and other is not None and torch.equal(one[-1], other[-1])


def test_layers_whose_states_are_not_as_wide_as_the_head_are_not_offered() -> None:
    # With a projection before its head, OPT's states between layers are wider than what the head reads.
    runtime, (text,) = make("opt"), prompts(random.Random(7), (6,))
    assert runtime.info.num_layers is None and runtime.info.hidden_states
    assert runtime.forward([feed(0, text, hidden=True)]).hidden.shape == (6, 16)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="no inner layers"):
        runtime.forward([feed(0, [5], layers=(0,))])
    assert runtime.truncate(0, 99) == 6
    plain = tiny_model("opt", word_embed_proj_dim=32)
    inner = DecoderRuntime(plain, owns_model=False).forward([feed(0, text, layers=(1,))]).inner
    torch.testing.assert_close(inner, own_looks(plain, text, 1), atol=2e-5, rtol=0)


def test_layers_that_do_not_hand_their_states_on_as_they_are_are_not_offered() -> None:
    model = tiny_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] * 1.5, *args[1:]))
    assert DecoderRuntime(model, owns_model=False).info.num_layers is None
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    assert DecoderRuntime(model, owns_model=False).info.num_layers is None


def test_a_head_that_is_not_named_is_not_read() -> None:
    model = tiny_model("llama")
    model.get_output_embeddings = lambda: None
    runtime, (text,) = DecoderRuntime(model, owns_model=True), prompts(random.Random(8), (5,))
    assert (runtime.info.hidden_states, runtime.info.num_layers) == (False, None)
    with pytest.raises(ModelError, match="hidden states"):
        runtime.forward([feed(0, text, hidden=True)])
    torch.testing.assert_close(
        runtime.forward([feed(0, text)]).logits, own_logits(tiny_model("llama"), text), atol=2e-5, rtol=0
    )


def test_a_pass_in_another_thread_is_not_read() -> None:
    model = tiny_model("gpt2")
    first, second = DecoderRuntime(model, owns_model=False), DecoderRuntime(model, owns_model=False)
    assert first._decoder_model is second._decoder_model
    found: list[torch.Tensor] = []

    def in_between(*_: Any) -> None:
        if not found:
            found.append(torch.empty(0))
            other = threading.Thread(target=lambda: found.append(second.forward([feed(0, [7, 8, 9])]).logits))
            other.start()
            other.join()

    handle = first._decoder_model.module.transformer.h[1].register_forward_pre_hook(in_between)
    rows = first.forward([last(0, [5, 6], hidden=True, layers=(1, 0))])
    handle.remove()
    torch.testing.assert_close(found[1], own_logits(model, [7, 8, 9]), atol=2e-5, rtol=0)
    torch.testing.assert_close(rows.hidden, own_states(model, [5, 6])[-1], atol=2e-5, rtol=0)
    expected = torch.stack([own_looks(model, [5, 6], layer)[1] for layer in (1, 0)])
    torch.testing.assert_close(rows.inner, expected, atol=2e-5, rtol=0)


def test_only_asked_rows_come_back_in_the_order_of_the_feeds() -> None:
    runtime, model = make("gpt2"), tiny_model("gpt2")
    first, second = prompts(random.Random(6), (6, 4))
    rows = runtime.forward([feed(8, first, asked=(1, 5)), feed(3, second, asked=())]).logits
    torch.testing.assert_close(rows, own_logits(model, first)[[1, 5]], atol=2e-5, rtol=0)
    assert runtime.forward([feed(3, second, asked=())]).logits.shape == (0, VOCAB_SIZE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_stay_near_their_float32_selves(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    widened = tiny_model("llama", dtype=dtype).float()
    runtime = DecoderRuntime(model, owns_model=True)
    (text,) = prompts(random.Random(7), (20,))
    rows = torch.cat([runtime.forward([feed(0, text[:12])]).logits, runtime.forward([feed(0, text[12:])]).logits])
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, own_logits(widened, text), atol=0.15, rtol=0)


class Failure(Exception):
    pass


def failing_in(runtime: DecoderRuntime, layer: int) -> Callable[[], None]:
    """Make one layer raise, after it and those before it have written. Returns what undoes it."""
    module: Any = runtime._decoder_model.module
    hook = module.model.layers[layer].register_forward_hook(lambda *_: (_ for _ in ()).throw(Failure))
    return hook.remove


def test_a_forward_that_raises_leaves_every_sequence_as_it_was() -> None:
    runtime, model = make("llama"), tiny_model("llama")
    first, second, third = prompts(random.Random(8), (60, 12, 9))
    runtime.forward([feed(0, first), feed(1, second)])
    mend = failing_in(runtime, 1)
    with pytest.raises(Failure):
        runtime.forward([feed(0, [5] * 9), feed(1, [6]), feed(2, third)])
    runtime.check()
    mend()
    with pytest.raises(KeyError):
        runtime.truncate(2, 1)
    rows = runtime.forward([feed(2, third), feed(0, [7, 8]), feed(1, [9])]).logits
    expected = [own_logits(model, third), own_logits(model, [*first, 7, 8])[-2:], own_logits(model, [*second, 9])[-1:]]
    torch.testing.assert_close(rows, torch.cat(expected), atol=2e-5, rtol=0)


def test_a_token_outside_the_vocabulary_raises_and_changes_nothing() -> None:
    runtime = make("llama")
    runtime.forward([feed(0, [5, 6])])
    with pytest.raises(IndexError):
        runtime.forward([feed(0, [VOCAB_SIZE]), feed(1, [5])])
    assert runtime.truncate(0, 99) == 2
    runtime.check()


def test_inputs_that_the_model_does_not_read_are_refused() -> None:
    runtime = make("gpt2")
    source = Source(inputs={"pixel_values": torch.zeros(1, 3, 4, 4), "attention_mask": torch.ones(1, 1)})
    with pytest.raises(ModelError, match="cannot read the prompt"):
        runtime.forward([feed(0, [5], source=source), feed(1, [6])])
    runtime.check()
    assert runtime.forward([feed(0, [5])]).logits.shape[0] == 1


def test_rows_of_embeddings_are_those_of_their_tokens() -> None:
    model = tiny_model("llama")
    runtime, tokens = DecoderRuntime(model, owns_model=False), [5, 6, 7, 8, 9]
    embeds = model.get_input_embeddings()(torch.tensor([[0, *tokens]])).detach()
    source = Source(inputs={"inputs_embeds": embeds, "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])})
    options: dict[str, Any] = {"asked": (1, 3, 4), "hidden": True, "layers": (0, 1)}
    pairs = [
        runtime.forward([feed(0, tokens, **options), feed(1, [4], asked=(0,))]),
        runtime.forward([feed(2, tokens, **options, source=source), feed(3, [4], asked=(0,))]),
        runtime.forward([feed(0, [11, 12])]),
        runtime.forward([feed(2, [11, 12])]),
    ]
    runtime.check()
    for plain, embedded in (pairs[:2], pairs[2:]):
        for one, other in zip(plain, embedded, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", PATHS)
def test_numbers_that_are_not_finite_do_not_outlive_their_sequence(attention: Any) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = torch.nan
    runtime, healthy = DecoderRuntime(model, owns_model=True, attention=attention), tiny_model("llama")
    texts = prompts(random.Random(9), (5, 9, 7))
    texts = [[token for token in text if token != 50] or [3] for text in texts]
    runtime.forward([feed(seq, text) for seq, text in enumerate(texts)])
    rows = runtime.forward([feed(0, [5]), feed(1, [50]), feed(2, [6])]).logits
    assert rows.isfinite().all(1).tolist() == [True, False, True]
    runtime.truncate(1, len(texts[1]))
    again = runtime.forward([feed(0, [7]), feed(1, [8]), feed(2, [9])]).logits
    expected = [[*texts[0], 5, 7], [*texts[1], 8], [*texts[2], 6, 9]]
    torch.testing.assert_close(
        again, torch.stack([own_logits(healthy, text)[-1] for text in expected]), atol=2e-5, rtol=0
    )
    runtime.forward([feed(1, [50])])
    runtime.release(1)
    assert runtime.forward([feed(0, [3]), feed(2, [4]), feed(4, [5])]).logits.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in everything_cached(runtime))


def everything_cached(runtime: DecoderRuntime) -> list[torch.Tensor]:
    pools = [pool for pools in runtime._slots._pools.values() for pool in pools]
    return [tensor for pool in pools for tensor in (*pool.keys, *pool.values)]
