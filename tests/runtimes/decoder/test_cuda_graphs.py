"""Decode steps of fixed shapes, repeated from a list of calls, against the plain way and against transformers."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.runtimes.decoder.replayed import Replays
from tests.sampling import sampled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from unspool.runtimes.decoder import cuda_graphs as graphs_module
from unspool.runtimes.decoder.capture import CaptureCheck, CudaGraphs, Uncapturable, Work
from unspool.runtimes.decoder.cuda_graphs import Graphs
from unspool.runtimes.decoder.decode_buffers import MOST_ROWS, StaticCache, StaticPass, step_shape
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import LayerLayout, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.types import Feed, Seq

CORE = ["gpt2", "llama", "gemma2", "gemma3"]
CPU = torch.device("cpu")


def make(family: str, maker: Any = None, **options: Any) -> DecoderRuntime:
    return DecoderRuntime(tiny_model(family), own=True, graph_maker=maker, **options)


def graphs_of(runtime: DecoderRuntime) -> Graphs:
    assert runtime._graphs is not None
    return runtime._graphs


def feed(seq: Seq, tokens: Sequence[int], **options: Any) -> Feed:
    return Feed(seq=seq, tokens=tokens, **{"asked": (len(tokens) - 1,), **options})


def text(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


class Pair:
    """Two runtimes that are told the same: one makes graphs, the other goes the plain way."""

    def __init__(self, family: str, maker: Any = None, **options: Any) -> None:
        self.maker = Replays() if maker is None else maker
        self.graphed, self.plain = make(family, self.maker, **options), make(family, **options)
        self.texts: dict[Seq, list[int]] = {}

    def forward(self, feeds: Sequence[Feed]) -> torch.Tensor:
        """Feed both, compare what they say, and return it."""
        ours, plain = self.graphed.forward(feeds).logits, self.plain.forward(feeds).logits
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)
        assert torch.equal(ours.argmax(-1), plain.argmax(-1))
        for one in feeds:
            self.texts.setdefault(one.seq, []).extend(one.tokens)
        return plain

    def fork(self, seq: Seq, child: Seq) -> None:
        for runtime in (self.graphed, self.plain):
            runtime.fork(seq, child)
        self.texts[child] = list(self.texts[seq])

    def truncate(self, seq: Seq, keep: int) -> None:
        kept = {runtime.truncate(seq, keep) for runtime in (self.graphed, self.plain)}
        assert kept == {min(keep, len(self.texts[seq]))}
        del self.texts[seq][keep:]

    def release(self, seq: Seq) -> None:
        for runtime in (self.graphed, self.plain):
            runtime.release(seq)
            runtime.check()
        del self.texts[seq]


def wander(pair: Pair, rng: random.Random, *, rounds: int, look: Callable[[], Any] = lambda: None) -> None:
    """Sequences of several size classes come, write for a while in changing company, fork, are cut, and go."""
    fresh = 0
    for _ in range(rounds):
        for _ in range(rng.choice([0, 1, 3])):
            pair.forward([feed(fresh, text(rng, rng.choice([1, 5, 40, 58, 100, 121])))])
            fresh += 1
        for seq in rng.sample(list(pair.texts), len(pair.texts)):
            if rng.random() < 0.15:
                pair.fork(seq, fresh)
                fresh += 1
            if rng.random() < 0.15:
                pair.truncate(seq, max(1, len(pair.texts[seq]) - rng.choice([0, 1, 9])))
            if rng.random() < 0.2 or len(pair.texts[seq]) > 200:
                pair.release(seq)
        # The same company for some steps, in any order, not all of it asked for anything.
        company = [seq for seq in pair.texts if rng.random() < 0.8]
        for _ in range(16 if company else 0):
            rng.shuffle(company)
            pair.forward([feed(seq, text(rng, 1), asked=(0,) * (rng.random() < 0.9)) for seq in company])
            look()


@pytest.mark.parametrize("family", CORE)
def test_steps_by_graphs_are_those_of_the_plain_way(family: str) -> None:
    pair = Pair(family)
    wander(pair, random.Random(f"graphs {family}"), rounds=8)
    assert not graphs_of(pair.graphed).obstacle
    # Two repetitions of each graph are proofs, whose result is the plain one.
    assert pair.maker.made >= 4 and pair.maker.repeated > 2 * pair.maker.made + 10


@pytest.mark.parametrize("family", sampled([family for family in FAMILIES if family not in CORE], 4))
def test_every_family_can_be_captured_and_says_the_same(family: str) -> None:
    pair, rng = Pair(family), random.Random(3)
    pair.forward([feed(seq, text(rng, length)) for seq, length in enumerate((3, 9, 40))])
    for _ in range(12):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    assert pair.maker.made == 1 and pair.maker.repeated == 7 and not graphs_of(pair.graphed).obstacle


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_greedy_tokens_by_graphs_are_those_of_generate(family: str) -> None:
    maker = Replays()
    runtime, model, rng = make(family, maker), tiny_model(family), random.Random(5)
    texts = [text(rng, length) for length in (3, 9, 1, 60, 30)]
    ours: list[list[int]] = [[] for _ in texts]
    feeds = [feed(seq, each) for seq, each in enumerate(texts)]
    for _ in range(24):
        for tokens, row in zip(ours, runtime.forward(feeds).logits, strict=True):
            tokens.append(int(row.argmax()))
        feeds = [feed(seq, tokens[-1:]) for seq, tokens in enumerate(ours)]
    assert maker.repeated > 10 and not graphs_of(runtime).obstacle
    for prompt, tokens in zip(texts, ours, strict=True):
        assert tokens == greedy(model, prompt, 24)


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return what transformers' own generate writes."""
    ids = torch.tensor([list(prompt)], device=model.device)
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = written[0, len(prompt) :].tolist()
    return tokens


# --- what a step writes -------------------------------------------------------------------------------------------


def test_a_step_writes_its_own_keys_and_behind_sequences_alone() -> None:
    pair, rng, num_padded = Pair("llama"), random.Random(7), 0
    table = pair.graphed._slots
    for seq, length in enumerate((3, 20, 61, 40, 100, 70, 90)):
        pair.forward([feed(seq, text(rng, length))])
    pair.fork(0, 7)
    pair.release(7)  # leaves tokens behind in a free slot, which a later sequence may go on from
    for step in range(40):
        pools = [pool for pools in table._pools.values() for pool in pools]
        before = {pool: [states.clone() for states in (*pool.keys, *pool.values)] for pool in pools}
        moving = {seq for seq, slot in table.live.items() if slot.length == slot.pool.capacity}
        company = [seq for seq in range(7) if step < 14 or seq != step // 7 % 7]
        pair.forward([feed(seq, text(rng, 1)) for seq in company])
        slots = {(slot.pool, slot.index): slot for free in table._free.values() for slot in free}
        slots |= {(slot.pool, slot.index): slot for slot in table.live.values()}
        own = {(table.live[seq], table.live[seq].length - 1) for seq in company}
        own |= {(table.live[seq], place) for seq in moving for place in range(table.live[seq].length)}
        for pool, states in before.items():
            for old, new in zip(states, (*pool.keys, *pool.values), strict=True):
                for index, place in (old != new).any(1).any(-1).nonzero().tolist():
                    slot = slots[pool, index]
                    is_padding = place == pool.capacity - 1 >= slot.length
                    assert (slot, place) in own or is_padding, (index, place, slot.length)
                    num_padded += is_padding
    assert num_padded and pair.maker.repeated > 20


def test_padding_finds_no_room_where_every_sequence_fills_its_slot_and_the_step_goes_the_plain_way() -> None:
    pair, rng = Pair("llama"), random.Random(8)
    pair.forward([feed(seq, text(rng, 50)) for seq in range(3)])
    for _ in range(13):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    repeated = pair.maker.repeated
    assert repeated == 8 and all(len(each) == 63 for each in pair.texts.values())
    pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    assert pair.maker.repeated == repeated
    assert not graphs_of(pair.graphed).obstacle


def test_what_is_not_finite_stays_in_its_own_sequence_and_goes_with_it() -> None:
    def nonfinite(runtime: DecoderRuntime) -> DecoderRuntime:
        with torch.no_grad():
            runtime._decoder_model.module.get_input_embeddings().weight[5] = torch.nan
        return runtime

    maker = Replays()
    graphed, plain = nonfinite(make("llama", maker)), nonfinite(make("llama"))
    rng = random.Random(9)
    for runtime in (graphed, plain):
        runtime.forward([feed(seq, [7, 8, 9]) for seq in range(3)])
    for step in range(14):
        tokens = text(rng, 3)
        tokens = [6 if token == 5 else token for token in tokens]
        feeds = [feed(seq, [5 if step == 11 and seq == 0 else token]) for seq, token in enumerate(tokens)]
        ours, theirs = (runtime.forward(feeds).logits for runtime in (graphed, plain))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0, equal_nan=True)
        assert bool(ours[0].isnan().all()) == (step >= 11) and ours[1:].isfinite().all()
    assert maker.repeated == 9 and not graphs_of(graphed).obstacle
    graphed.truncate(0, 3)
    (pools,) = graphed._slots._pools.values()
    graphed.release(0)
    assert all(states.isfinite().all() for pool in pools for states in (*pool.keys, *pool.values))


# --- one step in every shape --------------------------------------------------------------------------------------


def batch_of(slots: Sequence[Slot], **options: Any) -> Batch:
    return Batch([feed(seq, [seq + 3], **options) for seq in range(len(slots))], slots)


@pytest.mark.parametrize("num_slots", [1, 3, 8, 40])
@pytest.mark.parametrize(
    "params",
    [
        AttentionParams(None, None, None, None),
        AttentionParams(0.3, 7, None, None),
        AttentionParams(None, 300, 4.0, None),
        AttentionParams(0.2, 7, 4.0, torch.tensor([1.0, -2.0, 0.5, 0.0])),
    ],
    ids=["plain", "window", "softcap", "sinks"],
)
def test_a_static_step_attends_as_if_each_sequence_stood_alone(num_slots: int, params: AttentionParams) -> None:
    rng, layout = random.Random(num_slots), [LayerLayout(2, 8, 6, torch.float32, CPU)]
    pools = [SlotPool(tuple(layout), capacity, num_slots) for capacity in (64, 512)]
    generator = torch.Generator().manual_seed(num_slots)
    slots = []
    for pool in pools:
        for states in (*pool.keys, *pool.values):
            states.copy_(torch.randn(states.shape, generator=generator))
        for index in rng.sample(range(num_slots), min(num_slots, 3)):
            # Neither an empty sequence nor a full slot is too little or too much.
            length = rng.choice([0, 5, pool.capacity // 2, pool.capacity - 1]) if index else 2
            slots.append(Slot(pool, index, index, tokens=[0] * length))
    batch = batch_of(slots)
    form = step_shape(batch)
    assert form is not None
    static = StaticPass(form, CPU)
    static.fill(batch)
    cache = StaticCache(static, 1)
    query = torch.randn(1, 4, static.num_rows, 8, generator=generator)
    key = torch.randn(1, 2, static.num_rows, 8, generator=generator)
    value = torch.randn(1, 2, static.num_rows, 6, generator=generator)
    cache.update(key, value, 0)
    found = cache.attend(query, key, value, params)
    assert cache.finite is not None and cache.finite.all() and found.isfinite().all()
    for span in batch.spans:
        row = static.row_of(span)
        keys, values = (states[0][span.slot, :, : span.start] for states in (span.pool.keys, span.pool.values))
        keys, values = torch.cat([keys, key[0, :, row, None]], 1), torch.cat([values, value[0, :, row, None]], 1)
        torch.testing.assert_close(found[row], attended(query[0, :, row], keys, values, params), atol=2e-6, rtol=2e-5)


def attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, params: AttentionParams) -> torch.Tensor:
    """Attention of one query, head by head. query: [heads, width]; keys, values: [kv heads, keys, width]"""
    heads = []
    for head, own in enumerate(query):
        group = head * len(keys) // len(query)
        first = 0 if params.window is None else max(0, keys.shape[1] - params.window)
        scores = keys[group, first:] @ own * (params.scaling if params.scaling is not None else len(own) ** -0.5)
        if params.softcap is not None:
            scores = params.softcap * (scores / params.softcap).tanh()
        powers = scores.exp()
        total = powers.sum() + (0.0 if params.sinks is None else params.sinks[head].exp())
        heads.append((powers / total) @ values[group, first:])
    return torch.stack(heads)


def test_forms_grow_in_steps_and_leave_out_what_is_no_decode_step() -> None:
    pool = SlotPool((LayerLayout(1, 2, 2, torch.float32, CPU),), 2048, 80)

    def slots(*lengths: int) -> list[Slot]:
        return [Slot(pool, index, index, tokens=[0] * length) for index, length in enumerate(lengths)]

    def shape(*lengths: int) -> list[tuple[int, int]]:
        form = step_shape(batch_of(slots(*lengths)))
        assert form is not None
        return [(part.rows, part.keys) for part in form]

    assert shape(0) == [(1, 512)] and shape(511, 3, 9) == [(4, 512)] and shape(512, 3) == [(2, 1024)]
    assert shape(*[5] * MOST_ROWS) == [(64, 512)]
    assert step_shape(batch_of(slots(*[5] * (MOST_ROWS + 1)))) is None
    assert step_shape(batch_of(slots(2047, 2047, 2047))) is None and shape(2047, 2047) == [(2, 2048)]
    assert [part.rows for part in step_shape(batch_of(slots(1)), least_rows=4) or ()] == [4]
    for options in ({"hidden": True}, {"layers": (1,)}, {"invariant": True}):
        assert step_shape(batch_of(slots(3, 4), **options)) is None
    assert step_shape(Batch([feed(0, [3, 4])], slots(3))) is None


# --- what graphs die of -------------------------------------------------------------------------------------------


def settle(runtime: DecoderRuntime, seqs: Sequence[Seq] = (0, 1), steps: int = 9, seed: int = 11) -> torch.Tensor:
    """Open the sequences and write until a graph is trusted. Returns the last logits."""
    rng = random.Random(seed)
    rows = runtime.forward([feed(seq, text(rng, 6)) for seq in seqs])
    for _ in range(steps):
        rows = runtime.forward([feed(seq, text(rng, 1)) for seq in seqs])
    return rows.logits


def test_a_graph_dies_with_its_pool_and_does_not_keep_it() -> None:
    runtime = make("llama", Replays())
    expected = settle(runtime)
    assert len(graphs_of(runtime)) == 1
    ((pool,),) = runtime._slots._pools.values()
    gone = [weakref.ref(pool), *(weakref.ref(states) for states in (*pool.keys, *pool.values))]
    del pool
    for seq in (0, 1):
        runtime.release(seq)
    runtime._slots._drop_idle_pools()
    assert len(graphs_of(runtime)) == 0 and all(each() is None for each in gone)
    torch.testing.assert_close(settle(runtime), expected, atol=2e-5, rtol=0)
    assert len(graphs_of(runtime)) == 1


@pytest.mark.parametrize("told", [False, True], ids=["seen", "told"])
def test_graphs_die_with_the_weights(told: bool) -> None:
    model, maker = tiny_model("llama"), Replays()
    runtime = DecoderRuntime(model, own=False, graph_maker=maker)
    settle(runtime)
    assert len(graphs_of(runtime)) == 1
    kept = graphs_of(runtime)
    with torch.no_grad():
        for parameter in model.parameters():
            changed = parameter * 1.1
            if told:
                parameter.data = changed
            else:
                parameter.copy_(changed)
    if told:
        runtime.refresh()
    for seq in (0, 1):
        runtime.release(seq)
    expected = settle(DecoderRuntime(model, own=False), steps=0)
    torch.testing.assert_close(settle(runtime, steps=0), expected, atol=2e-5, rtol=0)
    runtime.forward([feed(0, [3])])
    assert graphs_of(runtime) is kept and len(kept) == 0 and not kept.obstacle
    for seq in (0, 1):
        runtime.release(seq)
    torch.testing.assert_close(settle(runtime), settle(DecoderRuntime(model, own=False)), atol=2e-5, rtol=0)
    assert len(graphs_of(runtime)) == 1 and maker.made == 2


def test_what_a_graph_reads_stays_in_memory_until_it_is_dropped() -> None:
    model = tiny_model("llama")
    runtime = DecoderRuntime(model, own=False, pack=False, graph_maker=Replays())
    expected = settle(runtime)
    before = {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)
    held = {tensor.data_ptr() for tensor in graphs_of(runtime)._weights}
    assert before <= held
    # Not told of the change, the graph goes on, as packed layers would.
    newest = [runtime._slots.live[seq].tokens[-1:] for seq in (0, 1)]
    for seq in (0, 1):
        runtime.truncate(seq, 14)
    rows = runtime.forward([feed(seq, tokens) for seq, tokens in enumerate(newest)])
    torch.testing.assert_close(rows.logits, expected, atol=2e-5, rtol=0)


def test_only_so_many_graphs_are_kept_and_forms_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "_MOST_GRAPHS", 2)
    pair, rng = Pair("llama"), random.Random(12)
    pair.forward([feed(seq, text(rng, 3)) for seq in range(5)])
    for count in (1, 2, 4, 1):
        for _ in range(8):
            pair.forward([feed(seq, text(rng, 1)) for seq in range(count)])
    assert pair.maker.made == 4 and len(graphs_of(pair.graphed)) == 2
    monkeypatch.setattr(graphs_module, "_MOST_FORMS", 1)
    for _ in range(8):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3, 5)])
        pair.forward([feed(seq, text(rng, 1)) for seq in range(5)])
    assert pair.maker.made == 4


# --- what is not trusted ------------------------------------------------------------------------------------------


class Maker:
    """A GraphMaker whose graphs do what `spoil` makes of the work."""

    def __init__(self, spoil: Callable[[Work], Work]) -> None:
        self._spoil = spoil

    def make(self, work: Work) -> Work:
        return self._spoil(work)


def stale(work: Work) -> Work:
    """What was captured says the same for ever."""
    results = tuple(each.clone() for each in work())
    return lambda: results


def off(work: Work) -> Work:
    def repeat() -> tuple[torch.Tensor, ...]:
        logits, finite = work()
        return logits + 0.05 * logits.abs().max(), finite

    return repeat


def nan(work: Work) -> Work:
    def repeat() -> tuple[torch.Tensor, ...]:
        logits, finite = work()
        return logits * torch.nan, finite

    return repeat


def not_finite(work: Work) -> Work:
    def repeat() -> tuple[torch.Tensor, ...]:
        logits, finite = work()
        return logits, ~finite

    return repeat


def one_too_many(work: Work) -> Work:
    def repeat() -> tuple[torch.Tensor, ...]:
        logits, finite = work()
        return torch.cat([logits, logits], -1), finite

    return repeat


@pytest.mark.parametrize("spoil", [stale, off, nan, not_finite, one_too_many])
def test_a_graph_that_gives_other_results_is_dropped_and_says_so(spoil: Callable[[Work], Work]) -> None:
    pair, rng = Pair("llama", Maker(spoil)), random.Random(13)
    pair.forward([feed(seq, text(rng, 3)) for seq in range(3)])
    for _ in range(12):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    assert "a graph of 4 rows gave other results than the model" in pair.graphed.info.backend
    assert len(graphs_of(pair.graphed)) == 0


def test_a_graph_that_writes_other_keys_is_dropped_and_leaves_none_behind() -> None:
    runtimes: list[DecoderRuntime] = []

    def spoil(work: Work) -> Work:
        def repeat() -> tuple[torch.Tensor, ...]:
            results = work()
            for slot in runtimes[0]._slots.live.values():
                slot.pool.keys[1][slot.index, :, slot.length] += 0.5
            return results

        return repeat

    pair, rng = Pair("llama", Maker(spoil)), random.Random(14)
    runtimes.append(pair.graphed)
    pair.forward([feed(seq, text(rng, 3)) for seq in range(3)])
    for _ in range(12):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    assert "gave other results" in pair.graphed.info.backend


def test_a_step_that_is_the_same_again_proves_nothing() -> None:
    pair = Pair("llama", Maker(stale))
    pair.forward([feed(0, [3, 4, 5])])
    for _ in range(12):
        pair.forward([feed(0, [6])])
        pair.truncate(0, 3)
    assert len(graphs_of(pair.graphed)) == 1 and not graphs_of(pair.graphed).obstacle
    pair.forward([feed(0, [7])])
    assert "gave other results" in pair.graphed.info.backend


@pytest.mark.parametrize("when", ["made", "repeated"])
def test_what_cannot_be_captured_or_repeated_goes_the_plain_way_and_says_why(when: str) -> None:
    def fail() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("operation not permitted\nand more")

    pair, rng = Pair("gpt2", Maker(lambda _: fail() if when == "made" else fail)), random.Random(15)  # type: ignore[arg-type, return-value]
    pair.forward([feed(seq, text(rng, 3)) for seq in range(3)])
    assert "CUDA graphs of decode steps" in pair.graphed.info.backend
    for _ in range(12):
        pair.forward([feed(seq, text(rng, 1)) for seq in range(3)])
    what = "a decode step cannot be captured" if when == "made" else "a graph cannot be repeated"
    assert pair.graphed.info.backend.endswith(f"no CUDA graphs: {what}: operation not permitted")


def test_a_model_that_looks_at_values_is_found_out_before_anything_is_captured() -> None:
    maker, model = Replays(), tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _, __, states: states if bool(states.isfinite().all()) else None)
    runtime = DecoderRuntime(model, own=True, graph_maker=maker)
    torch.testing.assert_close(settle(runtime), settle(make("llama")), atol=2e-5, rtol=0)
    assert maker.made == 0 and "it reads values of tensors" in runtime.info.backend


def test_on_a_cpu_nothing_is_made_and_nothing_is_said() -> None:
    runtime = make("gpt2")
    assert runtime._graphs is None and "CUDA" not in runtime.info.backend


NUMBERS, PLACES = torch.arange(6.0), torch.tensor([4, 1])


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda: NUMBERS.sum().item(), "reads values"),
        (lambda: bool(NUMBERS.any()), "reads values"),
        (lambda: torch.equal(NUMBERS, NUMBERS + 1), "reads values"),
        (lambda: NUMBERS.nonzero(), "size depends on values"),
        (lambda: NUMBERS[NUMBERS > 2], "size depends on values"),
        (lambda: NUMBERS.clone().__setitem__(NUMBERS > 2, 0.0), "size depends on values"),
        (lambda: NUMBERS.unique(), "size depends on values"),
        (lambda: torch.rand(3), "random"),
        (lambda: torch.nn.functional.dropout(NUMBERS, 0.5, True), "random"),
        (lambda: NUMBERS.to("meta"), "from one device to another"),
        (lambda: torch.empty(6, device="meta").copy_(NUMBERS), "from one device to another"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_check_finds_what_no_graph_can_hold(work: Callable[[], Any], reason: str, inference: bool) -> None:
    with torch.inference_mode(inference), pytest.raises(Uncapturable, match=reason), CaptureCheck():
        work()


@pytest.mark.parametrize("inference", [False, True])
def test_the_check_lets_pass_what_a_graph_can_hold(inference: bool) -> None:
    with torch.inference_mode(inference), CaptureCheck():
        found = NUMBERS[PLACES] + torch.nn.functional.dropout(NUMBERS[PLACES], 0.5, False)
        held = NUMBERS.clone()
        held[PLACES] = held.index_select(0, PLACES).to(torch.float64).softmax(-1).to(torch.float32)
    assert found.tolist() == [8.0, 2.0] and held.tolist()[1] < held.tolist()[4] < 1


# --- CUDA ---------------------------------------------------------------------------------------------------------


class _Stream:
    def __init__(self, story: list[str], name: str) -> None:
        self.story, self.name = story, name

    def wait_stream(self, other: _Stream) -> None:
        self.story.append(f"{self.name} waits for {other.name}")


class _Current:
    """Stands in for torch.cuda.stream: sets the current stream, and sets it back."""

    def __init__(self, cuda: _Cuda, stream: _Stream) -> None:
        self._cuda, self._stream = cuda, stream

    def __enter__(self) -> None:
        self._before, self._cuda.current = self._cuda.current, self._stream

    def __exit__(self, *_: object) -> None:
        self._cuda.current = self._before


class _Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    cuda: _Cuda

    def replay(self) -> None:
        self.cuda.story.append("replay")

    def pool(self) -> str:
        return self.memory

    memory = ""


class _Cuda:
    """Stands in for the few names of torch.cuda that capture a graph, and tells in which order they were used."""

    def __init__(self, fails: bool = False) -> None:
        self.story: list[str] = []
        self.fails, self.pools = fails, 0
        self.user = self.current = _Stream(self.story, "user")

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_Graph, "cuda", self, raising=False)
        for name in ("Stream", "stream", "current_stream", "graph", "graph_pool_handle", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)

    def _Stream(self) -> _Stream:
        return _Stream(self.story, "side")

    def _stream(self, stream: _Stream) -> _Current:
        return _Current(self, stream)

    def _current_stream(self, device: torch.device) -> _Stream:
        assert device == torch.device("cuda", 1)
        return self.current

    def _graph_pool_handle(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    def _device(self, device: torch.device) -> Any:
        assert device == torch.device("cuda", 1)
        return torch.inference_mode(False)

    def _graph(self, graph: _Graph, *, pool: str, stream: _Stream, capture_error_mode: str) -> Any:
        cuda = self
        graph.memory = pool

        class Capture:
            def __enter__(self) -> None:
                cuda.story.append(f"capture into {pool}, {capture_error_mode}")
                cuda.current = stream

            def __exit__(self, *_: object) -> None:
                if cuda.fails:  # and leaves its own stream behind
                    raise RuntimeError("capture broke off")
                cuda.current = cuda.user
                cuda.story.append("end")

        return Capture()


def test_a_capture_is_warmed_up_aside_and_shares_memory_while_another_graph_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _Cuda()
    cuda.patch(monkeypatch)
    maker = CudaGraphs(torch.device("cuda", 1))

    def work() -> tuple[torch.Tensor, ...]:
        cuda.story.append(f"work on {cuda.current.name}")
        return (NUMBERS,)

    repeat = maker.make(work)
    warm_up = ["side waits for user", *["work on side"] * 3, "user waits for side"]
    assert cuda.story == [*warm_up, "capture into pool 1, thread_local", "work on side", "end"]
    cuda.story.clear()
    assert repeat() == (NUMBERS,) and cuda.story == ["replay"]
    again = maker.make(work)
    assert "capture into pool 1, thread_local" in cuda.story
    del repeat, again
    maker.make(work)
    assert "capture into pool 2, thread_local" in cuda.story


def test_after_a_capture_that_breaks_off_the_stream_is_the_one_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(fails=True)
    cuda.patch(monkeypatch)
    with pytest.raises(RuntimeError, match="broke off"):
        CudaGraphs(torch.device("cuda", 1)).make(lambda: (NUMBERS,))
    assert cuda.current is cuda.user


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CORE)
def test_on_a_gpu_graphs_give_what_the_model_gives(family: str, dtype: torch.dtype) -> None:
    device = torch.device("cuda", 0)
    model = tiny_model(family, dtype=dtype).to(device)
    runtime, rng = DecoderRuntime(model, own=False), random.Random(16)
    assert "CUDA graphs of decode steps" in runtime.info.backend
    texts = [text(rng, length) for length in (3, 9, 60, 30, 100)]
    feeds = [feed(seq, each) for seq, each in enumerate(texts)]
    ours: list[list[int]] = [[] for _ in texts]
    for _ in range(40):
        rows = runtime.forward(feeds).logits
        assert rows.device == device
        for seq, (tokens, row) in enumerate(zip(ours, rows, strict=True)):
            with torch.no_grad():
                plain = model(torch.tensor([texts[seq] + tokens], device=device)).logits[0, -1].float()
            atol = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(row, plain, atol=atol * float(plain.abs().max()), rtol=0)
            tokens.append(int(plain.argmax()))
        feeds = [feed(seq, tokens[-1:]) for seq, tokens in enumerate(ours)]
    assert len(graphs_of(runtime)) >= 1 and not graphs_of(runtime).obstacle
    if dtype == torch.float32:
        assert all(tokens == greedy(model, prompt, 40) for prompt, tokens in zip(texts, ours, strict=True))
    for seq in range(len(texts)):
        runtime.release(seq)
    runtime._slots._drop_idle_pools()
    assert len(graphs_of(runtime)) == 0
