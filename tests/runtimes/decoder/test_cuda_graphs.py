"""CUDA graphs of decode steps: a stand-in that repeats calls on a CPU, against plain passes and transformers."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.runtimes.decoder.replayed import Replays
from tests.runtimes.feeds import last
from tests.sampling import sampled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from unspool.errors import OptionError
from unspool.runtimes.decoder.capture import Work
from unspool.runtimes.decoder.cuda_graphs import Graphs
from unspool.runtimes.decoder.decode_buffers import bucket_of
from unspool.runtimes.decoder.runtime import DecoderRuntime, _graphs_over
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import LayerLayout, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.tuning import GRAPH_MAX_ROWS
from unspool.types import Feed, Seq

# The stand-in repeats operators of PyTorch, and our kernels are none.
pytestmark = pytest.mark.usefixtures("plain_layers")

CORE = ["gpt2", "llama", "gemma2", "gemma3"]
CPU = torch.device("cpu")


def make(family: str, maker: Any = None, **options: Any) -> DecoderRuntime:
    return DecoderRuntime(tiny_model(family), owns_model=True, graph_maker=maker, **options)


def graphs_of(runtime: DecoderRuntime) -> Graphs:
    assert runtime._graphs is not None
    return runtime._graphs


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
    """Sequences of several size classes come, write for a while in changing batches, fork, are cut, and go."""
    fresh = 0
    for _ in range(rounds):
        for _ in range(rng.choice([0, 1, 3])):
            pair.forward([last(fresh, text(rng, rng.choice([1, 5, 30, 40])))])
            fresh += 1
        for seq in rng.sample(list(pair.texts), len(pair.texts)):
            if rng.random() < 0.15:
                pair.fork(seq, fresh)
                fresh += 1
            if rng.random() < 0.15:
                pair.truncate(seq, max(1, len(pair.texts[seq]) - rng.choice([0, 1, 9])))
            if rng.random() < 0.2 or len(pair.texts[seq]) > 56:
                pair.release(seq)
        # The same company for some steps, in any order, not all of it asked for anything.
        company = [seq for seq in pair.texts if rng.random() < 0.8]
        for _ in range(10 if company else 0):
            rng.shuffle(company)
            pair.forward([last(seq, text(rng, 1), asked=(0,) * (rng.random() < 0.9)) for seq in company])
            look()


@pytest.mark.parametrize("family", CORE)
def test_steps_by_graphs_are_those_of_the_plain_way(family: str) -> None:
    pair = Pair(family)
    wander(pair, random.Random(f"graphs {family}"), rounds=8)
    assert not graphs_of(pair.graphed).obstacle
    assert pair.maker.made >= 2 and pair.maker.repeated > pair.maker.made + 10


@pytest.mark.parametrize(
    "family", ["gpt_oss", *sampled([family for family in FAMILIES if family not in (*CORE, "gpt_oss")], 3)]
)
def test_every_family_can_be_captured_and_says_the_same(family: str) -> None:
    pair, rng = Pair(family), random.Random(3)
    pair.forward([last(seq, text(rng, length)) for seq, length in enumerate((3, 9, 40))])
    for _ in range(5):
        pair.forward([last(seq, text(rng, 1)) for seq in range(3)])
    assert pair.maker.made == 1 and pair.maker.repeated == 4 and not graphs_of(pair.graphed).obstacle


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_greedy_tokens_by_graphs_are_those_of_generate(family: str) -> None:
    maker = Replays()
    runtime, model, rng = make(family, maker), tiny_model(family), random.Random(5)
    texts = [text(rng, length) for length in (3, 9, 1, 30)]
    ours: list[list[int]] = [[] for _ in texts]
    feeds = [last(seq, each) for seq, each in enumerate(texts)]
    for _ in range(24):
        for tokens, row in zip(ours, runtime.forward(feeds).logits, strict=True):
            tokens.append(int(row.argmax()))
        feeds = [last(seq, tokens[-1:]) for seq, tokens in enumerate(ours)]
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


def test_a_step_writes_its_own_keys_alone() -> None:
    pair, rng = Pair("llama"), random.Random(7)
    table = pair.graphed._slots
    for seq, length in enumerate((3, 20, 31, 40, 17)):
        pair.forward([last(seq, text(rng, length))])
    for step in range(20):
        (pool,) = {slot.pool for slot in table.live.values()}
        before = [states.clone() for states in (*pool.keys, *pool.values)]
        company = [seq for seq in range(5) if step < 8 or seq != step % 5]
        pair.forward([last(seq, text(rng, 1)) for seq in company])
        own = {(table.live[seq].index, table.live[seq].length - 1) for seq in company}
        for old, new in zip(before, (*pool.keys, *pool.values), strict=True):
            assert {tuple(each) for each in (old != new).any(1).any(-1).nonzero().tolist()} == own
    assert pair.maker.repeated > 15


def test_what_is_not_finite_stays_in_its_own_sequence_and_goes_with_it() -> None:
    def nonfinite(runtime: DecoderRuntime) -> DecoderRuntime:
        with torch.no_grad():
            runtime._decoder_model.module.get_input_embeddings().weight[5] = torch.nan
        return runtime

    maker = Replays()
    graphed, plain = nonfinite(make("llama", maker)), nonfinite(make("llama"))
    rng = random.Random(9)
    for runtime in (graphed, plain):
        runtime.forward([last(seq, [7, 8, 9]) for seq in range(3)])
    for step in range(14):
        tokens = text(rng, 3)
        tokens = [6 if token == 5 else token for token in tokens]
        feeds = [last(seq, [5 if step == 11 and seq == 0 else token]) for seq, token in enumerate(tokens)]
        ours, theirs = (runtime.forward(feeds).logits for runtime in (graphed, plain))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0, equal_nan=True)
        assert bool(ours[0].isnan().all()) == (step >= 11) and ours[1:].isfinite().all()
    assert maker.repeated == 13 and not graphs_of(graphed).obstacle
    graphed.truncate(0, 3)
    (pools,) = graphed._slots._pools.values()
    graphed.release(0)
    assert all(states.isfinite().all() for pool in pools for states in (*pool.keys, *pool.values))


# --- buckets ------------------------------------------------------------------------------------------------------


def batch_of(slots: Sequence[Slot], **options: Any) -> Batch:
    return Batch([last(seq, [seq + 3], **options) for seq in range(len(slots))], slots)


def test_buckets_are_powers_of_two_and_leave_out_passes_that_are_no_decode_step() -> None:
    layout = (LayerLayout(1, 2, 2, torch.float32, CPU),)
    pool, other = SlotPool(layout, 64, 80), SlotPool(layout, 128, 1)
    slots = [Slot(pool, index, index, tokens=[0] * (index % 64)) for index in range(80)]
    assert [bucket_of(batch_of(slots[:count])) for count in (1, 2, 3, 5, 64)] == [1, 2, 4, 8, GRAPH_MAX_ROWS]
    assert bucket_of(batch_of(slots[: GRAPH_MAX_ROWS + 1])) is None
    assert bucket_of(batch_of([slots[0], Slot(other, 0, 80)])) is None
    for options in ({"hidden": True}, {"layers": (1,)}, {"invariant": True}, {"asked": (0, 0, 0)}):
        assert bucket_of(batch_of(slots[:2], **options)) is None
    assert bucket_of(Batch([last(0, [3, 4])], slots[:1])) is None


# --- what graphs die of -------------------------------------------------------------------------------------------


def settle(runtime: DecoderRuntime, seqs: Sequence[Seq] = (0, 1), steps: int = 5, seed: int = 11) -> torch.Tensor:
    """Open the sequences and write until a graph is trusted. Returns the last logits."""
    rng = random.Random(seed)
    rows = runtime.forward([last(seq, text(rng, 6)) for seq in seqs])
    for _ in range(steps):
        rows = runtime.forward([last(seq, text(rng, 1)) for seq in seqs])
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
    runtime = DecoderRuntime(model, owns_model=False, graph_maker=maker)
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
    expected = settle(DecoderRuntime(model, owns_model=False), steps=0)
    torch.testing.assert_close(settle(runtime, steps=0), expected, atol=2e-5, rtol=0)
    assert graphs_of(runtime) is kept and len(kept) == 0 and not kept.obstacle
    for seq in (0, 1):
        runtime.release(seq)
    torch.testing.assert_close(settle(runtime), settle(DecoderRuntime(model, owns_model=False)), atol=2e-5, rtol=0)
    assert len(graphs_of(runtime)) == 1 and maker.made == 2


def test_what_a_graph_reads_stays_in_memory_until_it_is_dropped() -> None:
    model = tiny_model("llama")
    runtime = DecoderRuntime(model, owns_model=False, pack=False, graph_maker=Replays())
    expected = settle(runtime)
    before = {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)
    held = {tensor.data_ptr() for tensor in graphs_of(runtime)._weights}
    assert before <= held
    # Not told of the change, the graph goes on, as packed layers would.
    newest = [runtime._slots.live[seq].tokens[-1:] for seq in (0, 1)]
    for seq in (0, 1):
        runtime.truncate(seq, 10)
    rows = runtime.forward([last(seq, tokens) for seq, tokens in enumerate(newest)])
    torch.testing.assert_close(rows.logits, expected, atol=2e-5, rtol=0)


# --- what is not trusted ------------------------------------------------------------------------------------------


class Maker:
    """A GraphMaker whose graphs do what `spoil` makes of the work."""

    def __init__(self, spoil: Callable[[Work], Work]) -> None:
        self._spoil = spoil

    def make(self, work: Work) -> Work:
        return self._spoil(work)


def stale(work: Work) -> Work:
    """Return the captured results again and again."""
    results = tuple(each.clone() for each in work())
    return lambda: results


def changed(
    change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Callable[[Work], Work]:
    return lambda work: lambda: change(*work())  # type: ignore[arg-type]


SPOILED = {
    "stale": stale,
    "other logits": changed(lambda logits, finite: (logits + 0.05 * logits.abs().max(), finite)),
    "nan": changed(lambda logits, finite: (logits * torch.nan, finite)),
    "not finite": changed(lambda logits, finite: (logits, ~finite)),
    "other shape": changed(lambda logits, finite: (torch.cat([logits, logits], -1), finite)),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_graph_that_gives_other_results_is_dropped_and_says_so(spoil: Callable[[Work], Work]) -> None:
    pair, rng = Pair("llama", Maker(spoil)), random.Random(13)
    pair.forward([last(seq, text(rng, 3)) for seq in range(3)])
    for _ in range(4):
        pair.forward([last(seq, text(rng, 1)) for seq in range(3)])
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
    pair.forward([last(seq, text(rng, 3)) for seq in range(3)])
    for _ in range(4):
        pair.forward([last(seq, text(rng, 1)) for seq in range(3)])
    assert "gave other results" in pair.graphed.info.backend


def test_a_step_that_is_the_same_again_proves_nothing() -> None:
    pair = Pair("llama", Maker(stale))
    pair.forward([last(0, [3, 4, 5])])
    for _ in range(4):
        pair.forward([last(0, [6])])
        pair.truncate(0, 3)
    assert len(graphs_of(pair.graphed)) == 1 and not graphs_of(pair.graphed).obstacle
    pair.forward([last(0, [7])])
    assert "gave other results" in pair.graphed.info.backend


@pytest.mark.parametrize("when", ["made", "repeated"])
def test_what_cannot_be_captured_or_repeated_goes_the_plain_way_and_says_why(when: str) -> None:
    def fail() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("operation not permitted\nand more")

    pair, rng = Pair("gpt2", Maker(lambda _: fail() if when == "made" else fail)), random.Random(15)  # type: ignore[arg-type, return-value]
    pair.forward([last(seq, text(rng, 3)) for seq in range(3)])
    assert "CUDA graphs of decode steps" in pair.graphed.info.backend
    for _ in range(4):
        pair.forward([last(seq, text(rng, 1)) for seq in range(3)])
    what = "a decode step cannot be captured" if when == "made" else "a graph cannot be repeated"
    assert pair.graphed.info.backend.endswith(f"no CUDA graphs: {what}: operation not permitted")


def test_a_model_that_looks_at_values_is_found_out_before_anything_is_captured() -> None:
    maker, model = Replays(), tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _, __, states: states if bool(states.isfinite().all()) else None)
    runtime = DecoderRuntime(model, owns_model=True, graph_maker=maker)
    torch.testing.assert_close(settle(runtime), settle(make("llama")), atol=2e-5, rtol=0)
    assert maker.made == 0 and "it reads values of tensors" in runtime.info.backend


@pytest.mark.parametrize(("given", "is_on"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_graphs_are_off_unless_asked_for(given: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_CUDA_GRAPHS", raising=False)
    if given is not None:
        monkeypatch.setenv("UNSPOOL_CUDA_GRAPHS", given)
    runtime = make("gpt2")
    assert runtime._graphs is None and "CUDA" not in runtime.info.backend, "there are none on a CPU"
    on_cuda = SimpleNamespace(device=torch.device("cuda", 0), layout=(), module=torch.nn.Linear(1, 1), version=0)
    graphs = _graphs_over(on_cuda, None)  # type: ignore[arg-type]
    assert (graphs is not None) == is_on and (graphs is None or "(experimental)" in graphs.describe())


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CUDA_GRAPHS", "yes")
    with pytest.raises(OptionError, match="must be 0 or 1"):
        make("gpt2")


# --- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CORE)
def test_on_a_gpu_graphs_give_what_the_model_gives(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOOL_CUDA_GRAPHS", "1")
    device = torch.device("cuda", 0)
    model = tiny_model(family, dtype=dtype).to(device)
    runtime, rng = DecoderRuntime(model, owns_model=False), random.Random(16)
    assert "CUDA graphs of decode steps" in runtime.info.backend
    texts = [text(rng, length) for length in (3, 9, 20, 1, 12)]
    feeds = [last(seq, each) for seq, each in enumerate(texts)]
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
        feeds = [last(seq, tokens[-1:]) for seq, tokens in enumerate(ours)]
    assert len(graphs_of(runtime)) >= 1 and not graphs_of(runtime).obstacle
    if dtype == torch.float32:
        assert all(tokens == greedy(model, prompt, 40) for prompt, tokens in zip(texts, ours, strict=True))
    for seq in range(len(texts)):
        runtime.release(seq)
    runtime._slots._drop_idle_pools()
    assert len(graphs_of(runtime)) == 0
