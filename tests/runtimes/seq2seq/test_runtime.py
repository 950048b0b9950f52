"""Models that read a source: against each family's own forward and generate, and in any company."""

from __future__ import annotations

import copy
import gc
import math
import random
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from tests.oracle import is_close, oracle_model, seq2seq_cases
from tests.runtimes.feeds import feed
from tests.sampling import sampled
from tests.strategies.test_constraints import holds
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import FAMILIES, IMAGE, MAX_LENGTH, TEXT, random_source, tiny_seq2seq
from tests.toys import drain, request, results
from unspool.engine import Engine
from unspool.errors import CapacityError, ModelError, PromptError
from unspool.inputs.sources import decoder_prompt, source_rows
from unspool.protocols import Runtime
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime, source_obstacle
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.weights.packed_linear import PackedLinear
from unspool.runtimes.wrap.wrapped import refresh
from unspool.strategies import STRATEGIES
from unspool.tuning import MAX_IDLE_SOURCES
from unspool.types import Output, Rows, Source

OWN_ATTENTION = ("trocr", "git")
RUNS = [*((family, "auto") for family in FAMILIES), ("t5", "own"), ("bart", "own"), ("whisper", "own")]
# As on an accelerator, where one call attends over slots that take no part.
SPANS = [("t5", "spans"), ("bart", "spans"), ("trocr", "spans")]
TOLERANCE = 3e-5


@cache
def model_of(family: str) -> Any:
    return tiny_seq2seq(family)


@cache
def runtime_of(family: str, way: Any = "auto") -> Seq2SeqRuntime:
    runtime = Seq2SeqRuntime(model_of(family), owns_model=False, attention="auto" if way == "spans" else way)
    runtime._spans_gaps = way == "spans"
    return runtime


def own_logits(model: Any, source: Source, tokens: Sequence[int]) -> torch.Tensor:
    """Return what the model itself says of the tokens, without a cache. --> [tokens, vocab]"""
    name = "input_ids" if model.config.model_type == "git" else "decoder_input_ids"
    with torch.no_grad():
        logits = model(**source.inputs, **{name: torch.tensor([list(tokens)])}, use_cache=False).logits[0].float()
    return logits[-len(tokens) :]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that rows are equal up to rounding, which grows with the largest number of a row."""
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * largest)


def draw_tokens(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


class Counted:
    """Counts the calls of a module while the context lasts."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.num_calls = module, 0

    def __enter__(self) -> Counted:
        self._handle = self.module.register_forward_pre_hook(self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.num_calls += 1

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# --- the model's own forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "attention"), RUNS + SPANS)
def test_every_step_says_what_the_models_own_forward_says(family: str, attention: str) -> None:
    """Six texts over three sources, in random pieces and company, with forks and truncations on the way."""
    rng = random.Random(f"{family} {attention}")
    runtime, model = runtime_of(family, attention), model_of(family)
    sources = [random_source(family, n, length) for n, length in enumerate((7, 7, 4))]
    reads = [sources[n % 3] for n in range(6)]
    texts = [draw_tokens(rng, rng.randint(8, 20)) for _ in reads]
    seqs, done, fresh = list(range(6)), [0] * 6, 6
    found = [torch.empty(len(text), VOCAB_SIZE) for text in texts]
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        chosen = [n for n in range(6) if done[n] < len(texts[n]) and rng.random() < 0.8]
        feeds = [
            feed(
                seqs[n],
                texts[n][done[n] :][: rng.choice((1, 1, 1, 2, 5))],
                source=None if seqs[n] in runtime._slots.live else reads[n],
            )
            for n in chosen
        ]
        if feeds:
            logits = runtime.forward(feeds).logits.split([len(each.tokens) for each in feeds])
            for n, each, rows in zip(chosen, feeds, logits, strict=True):
                found[n][done[n] : done[n] + len(each.tokens)] = rows
                done[n] += len(each.tokens)
        n = rng.randrange(6)
        if done[n] and rng.random() < 0.4:
            done[n] = runtime.truncate(seqs[n], max(1, done[n] - rng.choice((0, 1, 4))))
        if done[n] and rng.random() < 0.4:
            runtime.fork(seqs[n], fresh)
            runtime.release(seqs[n])
            seqs[n], fresh = fresh, fresh + 1
        runtime.check()
    for source, text, rows in zip(reads, texts, found, strict=True):
        assert_near(rows, own_logits(model, source, text))
    for seq in seqs:
        runtime.release(seq)
    runtime.check()
    assert not runtime._slots.live and not runtime._sources.of


@pytest.mark.parametrize(("family", "depth"), [("t5", "num_decoder_layers"), ("bart", "decoder_layers")])
def test_a_decoder_may_be_deeper_than_its_encoder(family: str, depth: str) -> None:
    model, source = tiny_seq2seq(family, **{depth: 3}), random_source(family)
    runtime = Seq2SeqRuntime(model, owns_model=False)
    rows = torch.cat(
        [runtime.forward([feed(0, (3, 5), source=source)]).logits, runtime.forward([feed(0, (7,))]).logits]
    )
    assert_near(rows, own_logits(model, source, (3, 5, 7)))


@pytest.mark.parametrize("family", FAMILIES)
def test_our_attention_is_used_where_the_decoder_lets_us(family: str) -> None:
    runtime = runtime_of(family)
    assert runtime._model.forward.attention == ("own" if family in OWN_ATTENTION else "ours")
    assert ("uses its own attention" in runtime.info.backend) is (family in OWN_ATTENTION)
    assert runtime.info.needs_source and not runtime.info.batch_invariant and runtime.info.num_layers is None
    assert runtime.info.vocab_size == VOCAB_SIZE and runtime.info.eos_token_ids == (2,)
    assert runtime.info.max_length == (None if "t5" in family else MAX_LENGTH)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_position_can_be_fed_and_none_behind_it(family: str) -> None:
    runtime, source = runtime_of(family), random_source(family)
    tokens = draw_tokens(random.Random(1), runtime.info.max_length or 2 * MAX_LENGTH)
    rows = runtime.forward([feed(0, tokens, source=source)]).logits
    runtime.release(0)
    assert_near(rows, own_logits(model_of(family), source, tokens))


@pytest.mark.parametrize("family", ["t5-gated", "bart", "whisper", "vit-bert", "trocr", "git"])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_hidden_states_are_what_the_head_reads(family: str, wanted: tuple[bool, bool]) -> None:
    runtime, model = runtime_of(family), model_of(family)
    texts = [(3, 5, 7), (3, 9, 11, 13, 15)]
    sources = [random_source(family, n) for n in range(2)]
    feeds = [
        feed(n, text, asked=(0,), hidden=hidden, source=source)
        for n, (text, hidden, source) in enumerate(zip(texts, wanted, sources, strict=True))
    ]
    found = runtime.forward(feeds)
    for seq in range(2):
        runtime.release(seq)
    expected = [own_hidden(model, *each) for *each, is_wanted in zip(sources, texts, wanted, strict=True) if is_wanted]
    assert found.hidden is not None and found.hidden.dtype == torch.float32 and len(found.logits) == 2
    assert_near(found.hidden, torch.cat(expected))


def own_hidden(model: Any, source: Source, tokens: Sequence[int]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    own_logits(model, source, tokens)
    handle.remove()
    return seen[0][0, -len(tokens) :]


# --- sources are read once ------------------------------------------------------------------------------------------


def test_a_source_is_read_once_while_it_lives() -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("bart"), owns_model=True)
    source = random_source("bart")
    with Counted(runtime._model.module.get_encoder()) as encoder:
        runtime.forward([feed(0, (3,), source=source), feed(1, (3, 4), source=source)])
        runtime.forward([feed(2, (3,), source=source)])
        runtime.fork(1, 3)
        for token in range(5, 15):
            runtime.forward([feed(seq, (token + seq,)) for seq in range(4)])
        runtime.truncate(3, 1)
        assert encoder.num_calls == 1
        (encoded,) = {id(each): each for each in runtime._sources.of.values()}.values()
        assert encoded.num_uses == 4
        kept = weakref.ref(encoded.keys[0])
        del encoded
        for seq in range(4):
            runtime.release(seq)
            runtime.check()
        runtime.forward([feed(4, (3,), source=source)])
        assert encoder.num_calls == 1 and kept() is not None
        runtime.release(4)
        del source
        gc.collect()
        assert kept() is None, "the output of a deleted source was kept"


def test_few_sources_wait_without_a_sequence() -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("bart"), owns_model=True)
    sources = [random_source("bart", seed) for seed in range(MAX_IDLE_SOURCES + 2)]
    with Counted(runtime._model.module.get_encoder()) as encoder:
        for seq, source in enumerate(sources):
            runtime.forward([feed(seq, (3,), source=source)])
            runtime.release(seq)
            runtime.check()
        assert encoder.num_calls == len(sources)
        for seq, source in enumerate(sources[2:], 100):
            runtime.forward([feed(seq, (3,), source=source)])
        assert encoder.num_calls == len(sources)
        runtime.forward([feed(200, (3,), source=sources[0])])
        assert encoder.num_calls == len(sources) + 1


def test_sources_of_one_shape_are_read_together() -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("t5"), owns_model=True)
    sources = [random_source("t5", n, length) for n, length in enumerate((5, 9, 5, 5, 9))]
    with Counted(runtime._model.module.get_encoder()) as encoder:
        rows = runtime.forward([feed(n, (0,), source=source) for n, source in enumerate(sources)]).logits
    assert encoder.num_calls == 2
    for row, source in zip(rows, sources, strict=True):
        assert_near(row, own_logits(tiny_seq2seq("t5"), source, (0,))[0])


@pytest.mark.parametrize(
    ("family", "attention", "passes"), [("bart", "ours", 1), ("bart", "own", 2), ("git", "own", 1)]
)
def test_sequences_of_equal_length_share_a_pass(family: str, attention: Any, passes: int) -> None:
    """Whatever they read, where the attention is ours; else those whose sources are as long."""
    runtime = Seq2SeqRuntime(tiny_seq2seq(family), owns_model=True, attention=attention)
    long, short = random_source(family, 0, 9), random_source(family, 1, 4)
    runtime.forward([feed(0, (3, 4), source=long), feed(1, (3, 5), source=short)])
    for child in range(2, 6):
        runtime.fork(child % 2, child)
    with Counted(runtime._model.module) as module:
        runtime.forward([feed(seq, (7 + seq,)) for seq in range(6)])
        assert module.num_calls == passes
        runtime.truncate(3, 2)
        runtime.forward([feed(seq, (8,)) for seq in range(6)])
        assert module.num_calls == 2 * passes + 1


def test_slots_of_different_sources_are_never_taken_for_one_another() -> None:
    """Equal tokens have other keys and values behind another source: a fork must not reuse those."""
    runtime, model = Seq2SeqRuntime(tiny_seq2seq("bart"), owns_model=True), tiny_seq2seq("bart")
    one, other = random_source("bart", 0), random_source("bart", 1)
    tokens = (3, 5, 7, 9)
    runtime.forward([feed(0, tokens, source=one), feed(1, tokens, source=other)])
    runtime.release(0)
    runtime.fork(1, 2)
    row = runtime.forward([feed(2, (11,))]).logits
    assert_near(row, own_logits(model, other, (*tokens, 11))[-1:])


def test_what_a_mask_hides_is_not_attended() -> None:
    runtime, model = runtime_of("bart"), model_of("bart")
    ids = random_source("bart", 0, 6).inputs["input_ids"]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    source = Source(inputs={"input_ids": ids, "attention_mask": mask})
    bare = Source(inputs={"input_ids": ids[:, :4]})
    rows = runtime.forward([feed(0, (3, 5), source=source), feed(1, (3, 5), source=bare)]).logits
    for seq in range(2):
        runtime.release(seq)
    assert_near(rows[:2], rows[2:])
    assert_near(rows[:2], own_logits(model, source, (3, 5)))


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"source": None},
            "needs a source in the first feed of a sequence only: the first feed of a sequence lacks it",
        ),
        ({"seq": 0}, "needs a source in the first feed of a sequence only: a later feed has one"),
        ({"invariant": True}, "cannot keep a row independent of other rows: it has an encoder"),
        ({"layers": (1,)}, "has no inner layers that its own head can read"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_everything_as_it_was(wanted: dict[str, Any], message: str) -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("bart"), owns_model=True)
    source = random_source("bart")
    runtime.forward([feed(0, (3, 4), source=source)])
    with pytest.raises(ModelError, match=message):
        runtime.forward([feed(2, (3,), source=source), feed(**{"seq": 1, "tokens": (3,), "source": source, **wanted})])
    runtime.check()
    assert set(runtime._slots.live) == {0} and runtime._slots.live[0].length == 2


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "git"])
def test_a_pass_that_raises_leaves_lengths_and_sources_as_they_were(family: str, part: str) -> None:
    runtime, model = Seq2SeqRuntime(tiny_seq2seq(family), owns_model=True), tiny_seq2seq(family)
    source, other = random_source(family, 0), random_source(family, 1, 4)
    runtime.forward([feed(0, (3, 4), source=source)])
    module = runtime._model.module
    if family == "git":
        target = module.git.image_encoder if part == "encoder" else module.output
    else:
        target = module.get_encoder() if part == "encoder" else module.lm_head

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    with target_hook(target, fail), pytest.raises(RuntimeError, match="broken"):
        runtime.forward([feed(0, (5,)), feed(1, (3,), source=other)])
    runtime.check()
    assert set(runtime._slots.live) == {0} and runtime.truncate(0, 9) == 2
    rows = runtime.forward([feed(0, (5,)), feed(1, (3,), source=other)]).logits
    assert_near(rows[:1], own_logits(model, source, (3, 4, 5))[-1:])
    assert_near(rows[1:], own_logits(model, other, (3,)))


class target_hook:  # noqa: N801
    """A hook before a module's forward while the context lasts."""

    def __init__(self, module: torch.nn.Module, hook: Callable[..., None]) -> None:
        self._module, self._hook = module, hook

    def __enter__(self) -> None:
        self._handle = self._module.register_forward_pre_hook(self._hook)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def test_limits_are_kept_and_a_refusal_leaves_nothing_behind() -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("bart"), owns_model=True, max_cache_tokens=6, max_sequences=2)
    source = random_source("bart")
    with pytest.raises(CapacityError, match="at most 6 tokens"):
        runtime.forward([feed(0, (3, 4, 5, 6, 7, 8, 9), source=source)])
    assert not runtime._sources.of and not runtime._slots.live
    runtime.forward([feed(0, (3, 4), source=source)])
    runtime.fork(0, 1)
    with pytest.raises(CapacityError, match="at most 2 sequences"):
        runtime.fork(0, 2)
    runtime.check()


def test_a_source_of_nonsense_spoils_no_neighbor() -> None:
    runtime, model = Seq2SeqRuntime(tiny_seq2seq("whisper"), owns_model=True), tiny_seq2seq("whisper")
    good = random_source("whisper")
    bad = Source(inputs={"input_features": torch.full_like(good.inputs["input_features"], math.nan)})
    for step in range(3):
        opening = {"source": good} if not step else {}, {"source": bad} if not step else {}
        rows = runtime.forward([feed(0, (3 + step,), **opening[0]), feed(1, (3 + step,), **opening[1])]).logits
        assert rows[1].isnan().all()
        assert_near(rows[0], own_logits(model, good, range(3, 4 + step))[-1])
    runtime.release(1)
    runtime.fork(0, 2)
    runtime.check()


def test_models_that_do_not_fit_are_refused_by_name() -> None:
    assert "has no encoder" in str(source_obstacle(tiny_model("gpt2")))
    with pytest.raises(ModelError, match="GPT2LMHeadModel has no encoder"):
        Seq2SeqRuntime(tiny_model("gpt2"), owns_model=False)
    with pytest.raises(ModelError, match="T5EncoderModel has no language-model head"):
        import transformers

        Seq2SeqRuntime(transformers.T5EncoderModel(tiny_seq2seq("t5").config), owns_model=False)
    with pytest.raises(ModelError, match="does not run on our attention|does not use the attention interface"):
        Seq2SeqRuntime(tiny_seq2seq("trocr"), owns_model=False, attention="ours")


def test_a_model_that_wants_more_of_its_encoder_is_refused_by_name() -> None:
    """Its decoder reads a number that a stand-in for the encoder's output does not have."""
    import transformers

    class CuriousT5(transformers.T5ForConditionalGeneration):
        def forward(self, *args: Any, encoder_outputs: Any = None, **options: Any) -> Any:
            assert encoder_outputs.mood is not None
            return super().forward(*args, encoder_outputs=encoder_outputs, **options)

    with pytest.raises(ModelError, match=r"CuriousT5 does not run on a probe input: AttributeError.*mood"):
        Seq2SeqRuntime(CuriousT5(tiny_seq2seq("t5").config), owns_model=False)


def test_positions_that_begin_behind_the_pad_leave_room_for_fewer_tokens() -> None:
    import transformers

    fields = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 20,
        "pad_token_id": 1,
    }
    encoder = transformers.RobertaConfig(**fields)
    decoder = transformers.RobertaConfig(**fields, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, tie_word_embeddings=False)
    model = transformers.EncoderDecoderModel(config).eval()
    runtime = Seq2SeqRuntime(model, owns_model=False)
    assert runtime.info.max_length == runtime.source.max_length == 18
    source = random_source("bart", 0, 18)
    tokens = draw_tokens(random.Random(0), 18)
    rows = runtime.forward([feed(0, tokens, source=source)]).logits
    assert_near(rows, own_logits(model, source, tokens))


# --- the user's own model, packing, types ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart", "whisper", "vit-gpt2", "git"])
def test_a_users_model_stays_as_it_was(family: str) -> None:
    model = tiny_seq2seq(family).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    implementations = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    runtime = Seq2SeqRuntime(model, owns_model=False)
    runtime.forward([feed(0, (3, 4), source=random_source(family))])
    assert model.training and [(name, type(module)) for name, module in model.named_modules()] == modules
    after = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    assert after == implementations and all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_training_step_is_seen_when_the_next_sequence_opens() -> None:
    model, source = tiny_seq2seq("bart"), random_source("bart")
    runtime = Seq2SeqRuntime(model, owns_model=False)
    runtime.forward([feed(0, (3, 4), source=source)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)
    rows = runtime.forward([feed(1, (3, 4), source=source)]).logits
    assert_near(rows, own_logits(model, source, (3, 4)))
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    refresh(model)
    rows = runtime.forward([feed(2, (3, 4), source=source)]).logits
    assert_near(rows, own_logits(model, source, (3, 4)))
    runtime.release(0)
    runtime.fork(2, 3)
    rows = runtime.forward([feed(3, (5,))]).logits
    assert_near(rows, own_logits(model, source, (3, 4, 5))[-1:])
    runtime.check()


def test_a_fork_takes_over_nothing_that_older_weights_made() -> None:
    """A free slot may hold the very tokens of the parent, from before a training step that the parent lived through."""
    model, source = tiny_seq2seq("bart"), random_source("bart")
    runtime = Seq2SeqRuntime(model, owns_model=False)
    runtime.forward([feed(9, (3,), source=source)])
    runtime.forward([feed(0, (3, 4), source=source)])
    runtime.fork(0, 1)
    runtime.forward([feed(1, (5,))])
    runtime.release(1)
    runtime.release(9)  # whose slot the next sequence to open takes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)
    runtime.forward([feed(0, (5,)), feed(2, (3,), source=source)])
    runtime.fork(0, 3)
    rows = runtime.forward([feed(0, (6,)), feed(3, (6,))]).logits
    assert_near(rows[0], rows[1])


def test_a_model_with_other_tensors_than_before_is_followed() -> None:
    model, source = tiny_seq2seq("t5"), random_source("t5")
    runtime = Seq2SeqRuntime(model, owns_model=False)
    runtime.forward([feed(0, (3, 4), source=source)])
    runtime.release(0)
    model.load_state_dict(tiny_seq2seq("t5", seed=1).state_dict(), assign=True)
    rows = runtime.forward([feed(1, (3, 4), source=source)]).logits
    assert_near(rows, own_logits(tiny_seq2seq("t5", seed=1), source, (3, 4)))


def test_runtimes_over_one_model_share_what_runs_and_no_sequences() -> None:
    model, source = tiny_seq2seq("bart"), random_source("bart")
    first, second = Seq2SeqRuntime(model, owns_model=False), Seq2SeqRuntime(model, owns_model=False)
    assert first._model is second._model
    rows = [each.forward([feed(0, (3, 4), source=source)]).logits for each in (first, second)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("family", ["t5", "t5-gated"])
def test_packed_weights_are_not_unpacked_in_a_forward(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 looks at the type of a weight in every forward; unpacked for that, it would cost more than the product."""
    monkeypatch.setenv(VARIABLE, "native")
    runtime, source = Seq2SeqRuntime(tiny_seq2seq(family), owns_model=True, pack=True), random_source(family)
    packed = [module for module in runtime._model.module.modules() if isinstance(module, PackedLinear)]
    if not packed:
        pytest.skip(f"nothing is packed here: {runtime.info.backend}")
    assert all(not each._source for each in packed)
    with torch.autograd.profiler.profile() as profile:
        rows = runtime.forward([feed(0, (3, 4), source=source)]).logits
    assert not [event for event in profile.function_events if "to_dense" in event.name]
    assert_near(rows, own_logits(tiny_seq2seq(family), source, (3, 4)))


@pytest.mark.parametrize("family", ["t5", "bart", "whisper", "git"])
@pytest.mark.parametrize("pack", [False, True])
def test_bfloat16_weights(family: str, pack: bool) -> None:
    model, source = tiny_seq2seq(family, dtype=torch.bfloat16), random_source(family)
    runtime = Seq2SeqRuntime(model, owns_model=False, pack=pack)
    rows = runtime.forward([feed(0, (3, 4, 5), source=source)]).logits
    typed = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in source.inputs.items()
    }
    expected = own_logits(model, Source(inputs=typed), (3, 4, 5))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected, rtol=0, atol=0.06 * float(expected.abs().max()))


def test_the_copy_refuses_to_run_outside() -> None:
    runtime = runtime_of("bart")
    with pytest.raises(ModelError, match="call your own model"):
        runtime._model.module(**random_source("bart").inputs, decoder_input_ids=torch.tensor([[3]]))


def test_two_threads_run_two_runtimes_over_one_model() -> None:
    model = tiny_seq2seq("bart")
    expected = [own_logits(model, random_source("bart", n), range(3, 13)) for n in range(2)]
    faults: list[float] = []

    def work(number: int) -> None:
        runtime = Seq2SeqRuntime(model, owns_model=False)
        source = random_source("bart", number)
        for trial in range(10):
            opening = {"source": source}
            for token in range(3, 13):
                row = runtime.forward([feed(trial, (token,), **opening)]).logits
                opening = {}
                faults.append(float((row - expected[number][token - 3]).abs().max()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 200 and max(faults) < TOLERANCE


# --- through the engine ---------------------------------------------------------------------------------------------


def run(runtime: Runtime, wanted: Sequence[Any]) -> list[tuple[Output, ...]]:
    """Run requests side by side; the runtime is empty afterwards."""
    engine = Engine(runtime)
    numbers = [engine.submit(each) for each in wanted]
    outcome = results(drain(engine))
    for each in wanted:
        for live in (runtime, each.assistant):
            assert live is None or not live._slots.live and not live._sources.of, "sequences were left"
            assert live is None or live.check() is None
    found = [outcome[number] for number in numbers]
    for outputs in found:
        if isinstance(outputs, Exception):
            raise outputs
    return found


def asking(runtime: Seq2SeqRuntime, source: Source, given: Any = None, own: Any = None, **options: Any) -> Any:
    """Return a request that reads the source."""
    return request(decoder_prompt(runtime.source, given), own={**(own or {}), "source": source}, **options)


def their_tokens(family: str, source: Source, start: Sequence[int], **options: Any) -> list[list[int]]:
    """Return what transformers' own generate writes behind the start, row by row."""
    model = model_of(family)
    name = "input_ids" if family == "git" else "decoder_input_ids"
    if family == "whisper" and "max_length" in options:
        options["max_length"] -= len(start)  # Whisper's own generate does not count what the decoder begins with.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.generate(**source.inputs, **{name: torch.tensor([start])}, do_sample=False, **options)
    # Whisper leaves its prompt out.
    skip = 0 if family == "whisper" else len(start)
    return [row[skip:] for row in found.tolist()]


def cut(tokens: Sequence[int], end: int = 2) -> list[int]:
    """Return the tokens up to the first end."""
    kept = list(tokens)
    return kept[: kept.index(end) + 1] if end in kept else kept


def without_tail(tokens: list[int]) -> list[int]:
    """Return the tokens as Whisper's own generate does: without the end, and without what passes for a pad there."""
    count = next((count for count in range(len(tokens), 0, -1) if tokens[count - 1] not in (0, 2)), 0)
    return tokens[:count]


OPTIONS = {
    "greedy": {"max_new_tokens": 14},
    "prompted": {"max_new_tokens": 20, "no_repeat_ngram_size": 1},
    "minimum": {"max_length": 13, "min_length": 9, "repetition_penalty": 1.8},
    "beam": {
        "max_new_tokens": 12,
        "num_beams": 4,
        "num_return_sequences": 3,
        "length_penalty": 0.8,
        "no_repeat_ngram_size": 2,
    },
}


CALLS = [(family, attention, kind) for family, attention in RUNS for kind in OPTIONS]


@pytest.mark.parametrize(("family", "attention", "kind"), sampled(CALLS, 24))
def test_the_engine_writes_what_transformers_generates(family: str, attention: str, kind: str) -> None:
    runtime, options = runtime_of(family, attention), dict(OPTIONS[kind])
    if family == "whisper":
        options.pop("num_return_sequences", None)  # Whisper's own generate returns but one.
    given = (7, 9, 11) if kind == "prompted" else None
    sources = [random_source(family, n, 4 + 3 * n) for n in range(2)]
    found = run(runtime, [asking(runtime, source, given, **options) for source in sources])
    for source, outputs in zip(sources, found, strict=True):
        expected = their_tokens(family, source, decoder_prompt(runtime.source, given), **options)
        ours = [list(output.token_ids) for output in outputs]
        if family == "whisper":
            ours = [without_tail(tokens) for tokens in ours]
        assert ours == [cut(row) for row in expected]


WAYS: dict[str, dict[str, Any]] = {
    "sample": {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 4},
    "beam_sample": {"do_sample": True, "num_beams": 3, "num_return_sequences": 3},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 4},
    "constrained_beam": {"num_beams": 4, "force_words_ids": [[17, 23]], "num_return_sequences": 2},
    "best_of": {"do_sample": True, "best_of": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", sampled([*FAMILIES], 5))
def test_every_way_of_decoding_reads_the_models_own_probabilities_and_is_the_same_in_company(
    family: str, way: str
) -> None:
    runtime, options = runtime_of(family), {"max_new_tokens": 8, "seed": 5, **WAYS[way]}
    sources = [random_source(family, n, 4 + 3 * n) for n in range(2)]
    wanted = [asking(runtime, source, **options) for source in sources]
    together = run(runtime, [*wanted, asking(runtime, sources[1], max_new_tokens=11)])
    for source, each, outputs in zip(sources, wanted, together, strict=False):
        alone = run(runtime, [each])[0]
        assert [output.token_ids for output in alone] == [output.token_ids for output in outputs]
        for output in outputs:
            tokens = (*each.prompt, *output.token_ids)
            logprobs = own_logits(model_of(family), source, tokens[:-1]).log_softmax(-1)[len(each.prompt) - 1 :]
            expected = logprobs.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(output.logprobs), expected, rtol=0, atol=1e-4)


@cache
def draft_of(family: str) -> Seq2SeqRuntime:
    """Return a model that mostly agrees with `runtime_of`: the same weights, moved a little."""
    model = copy.deepcopy(model_of(family))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    return Seq2SeqRuntime(model, owns_model=True)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("family", ["t5", "bart", "whisper", "vit-bert", "git"])
def test_a_draft_model_that_reads_the_same_source_changes_no_token(family: str, do_sample: bool) -> None:
    runtime, source = runtime_of(family), random_source(family)
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": do_sample, "seed": 3}
    (plain,) = run(runtime, [asking(runtime, source, **options)])
    own = {"strategy": STRATEGIES["assisted"], "assistant": draft_of(family)}
    lookup = {"strategy": STRATEGIES["assisted"]}
    found = run(
        runtime,
        [
            asking(runtime, source, own=own, **options),
            asking(runtime, source, own=lookup, **options, prompt_lookup_num_tokens=3),
        ],
    )
    assert [outputs[0].token_ids for outputs in found] == [plain[0].token_ids] * 2


def test_source_and_prompt_must_fit_the_model() -> None:
    runtime = runtime_of("bart")
    with pytest.raises(PromptError, match="needs an encoder input; pass a text, audio or image"):
        Engine(runtime).submit(request((3,)))
    with pytest.raises(PromptError, match="holds 48 in all"):
        Engine(runtime).submit(asking(runtime, random_source("bart"), [3] * MAX_LENGTH))


# --- recorded runs of transformers ----------------------------------------------------------------------------------


@cache
def recorded(name: str) -> Seq2SeqRuntime:
    return Seq2SeqRuntime(oracle_model(name), owns_model=False)


def outputs_of(case: dict[str, Any]) -> list[Output]:
    """Return the outputs of a recorded case, prompt by prompt, best first."""
    runtime = recorded(case["model"])
    sources = source_rows({name: case[name] for name in ("input_ids", "attention_mask")}, runtime.source)
    given = case.get("decoder_input_ids") or [None] * len(sources)
    own: dict[str, Any] = {}
    if case["strategy"] in ("assisted", "prompt_lookup"):
        own["strategy"] = STRATEGIES["assisted"]
    if case["assistant"]:
        own["assistant"] = recorded(case["assistant"])
    options = case["kwargs"] | {"do_sample": False}
    wanted = [asking(runtime, *each, own=own, **options) for each in zip(sources, given, strict=True)]
    return [output for outputs in run(runtime, wanted) for output in outputs]


EXACT = [case for case in seq2seq_cases() if case["strategy"] != "constrained_beam"]
CONSTRAINED = seq2seq_cases("constrained_beam")


def test_the_oracle_has_cases_of_every_kind() -> None:
    kinds = [case["strategy"] for case in seq2seq_cases()]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {
        "greedy": 27,
        "beam": 17,
        "group_beam": 4,
        "constrained_beam": 4,
        "contrastive": 4,
        "assisted": 2,
        "prompt_lookup": 2,
    }


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case["id"])
def test_the_recorded_tokens_and_scores_are_written(case: dict[str, Any]) -> None:
    outputs, expected = outputs_of(case), case["expected"]
    assert [list(output.token_ids) for output in outputs] == expected["completions"]
    scores = expected.get("sequences_scores")
    if scores is not None:
        assert all(is_close(output.score, score) for output, score in zip(outputs, scores, strict=True))


@pytest.mark.parametrize("case", CONSTRAINED, ids=lambda case: case["id"])
def test_constrained_outputs_hold_the_words_and_score_at_least_as_high(case: dict[str, Any]) -> None:
    words = [
        tuple(word) if isinstance(word[0], int) else tuple(tuple(one) for one in word)
        for word in case["kwargs"]["force_words_ids"]
    ]
    expected = case["expected"]
    for output, recorded_tokens, score in zip(
        outputs_of(case), expected["completions"], expected["sequences_scores"], strict=True
    ):
        assert holds(output.token_ids, words)
        if holds(recorded_tokens, words):
            assert output.score >= score - 1e-4 * max(1.0, abs(score))


def test_shapes_of_empty_passes() -> None:
    empty: Rows = runtime_of("t5").forward([])
    assert empty.logits.shape == (0, VOCAB_SIZE)


def test_image_and_text_families_are_all_there() -> None:
    assert {*TEXT, *IMAGE, "whisper"} == set(FAMILIES)
