"""The generic backend and recomputation: each family against its own forward, and in any company."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.oracle import oracle_cases, oracle_model, real_prompts
from tests.runtimes.feeds import feed, prompts
from tests.sampling import sampled
from tests.tiny_models import OTHERS, VOCAB_SIZE, tiny_model
from tests.toys import drain, request, results
from unspool.config import GenerationConfig
from unspool.engine import Engine
from unspool.errors import ModelError
from unspool.model import LanguageModel
from unspool.protocols import Runtime
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.generic.model import CausalModel
from unspool.runtimes.generic.runtime import GenericRuntime
from unspool.runtimes.model_info import cache_names
from unspool.runtimes.wrap.wrapped import refresh
from unspool.types import Source

TOLERANCE = 3e-4
# What follows a token cannot be read off a pass over more tokens: they attend in both directions.
READING_A_PLACE = {"xlnet", "xlm", "bert"}
# transformers' `generate` lets padding into what these say: its batches differ from its single runs.
MISLED_BY_PADDING = {"rwkv", "xlnet", "xlm", "recurrent_gemma"}
# Without these, `generate` refuses beams (RWKV), or goes on with what it kept for other tokens.
EXACT: dict[str, dict[str, Any]] = {
    "rwkv": {"use_cache": False},
    "recurrent_gemma": {"use_cache": False},
    "bert": {"use_cache": False},
    "xlnet": {"use_mems": False},
    "xlm": {"use_cache": False},
}
PROMPTS = [[52, 56, 8, 36, 68, 65, 54, 41, 64, 48, 77], [29, 3, 90, 15, 44, 71]]


@cache
def model_of(family: str) -> Any:
    return tiny_model(family)


def next_logits(family: str, tokens: Sequence[int]) -> torch.Tensor:
    """Return what transformers' `generate` reads after these tokens, without a cache. --> [vocab]"""
    ids = torch.tensor([tokens])
    found = model_of(family).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=False,
        use_cache=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    row: torch.Tensor = found.logits[0][0]
    return row


def own_rows(family: str, tokens: Sequence[int]) -> torch.Tensor:
    """Return what follows each token by the model itself. --> [tokens, vocab]"""
    if family in READING_A_PLACE:
        return torch.stack([next_logits(family, tokens[: at + 1]) for at in range(len(tokens))])
    with torch.no_grad():
        rows: torch.Tensor = model_of(family)(torch.tensor([tokens]), use_cache=False).logits[0]
    return rows


def wander(runtime: Runtime, texts: list[list[int]], rng: random.Random) -> list[dict[int, torch.Tensor]]:
    """Feed the texts in random pieces and company, with forks and truncations on the way. Returns their rows."""
    seqs, num_seqs = list(range(len(texts))), len(texts)
    done, found = [0] * len(texts), [dict[int, torch.Tensor]() for _ in texts]
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        feeds, places = [], []
        for index, text in enumerate(texts):
            if done[index] >= len(text) or rng.random() < 0.2:
                continue
            count = min(rng.choice((1, 1, 1, 2, 5)), len(text) - done[index])
            asked = tuple(at for at in range(count) if rng.random() < 0.6)
            feeds.append(feed(seqs[index], text[done[index] : done[index] + count], asked=asked))
            places += [(index, done[index] + at) for at in asked]
            done[index] += count
        for (index, at), row in zip(places, runtime.forward(feeds).logits, strict=True):
            found[index][at] = row
        for index in range(len(texts)):
            if done[index] and rng.random() < 0.2:
                runtime.fork(seqs[index], num_seqs)
                runtime.release(seqs[index])
                seqs[index], num_seqs = num_seqs, num_seqs + 1
            if done[index] and rng.random() < 0.25:
                done[index] = runtime.truncate(seqs[index], rng.randint(max(0, done[index] - 4), done[index]))
        if hasattr(runtime, "check"):
            runtime.check()
    return found


@pytest.mark.parametrize("family", sampled(list(OTHERS), 7))
def test_rows_are_the_models_own_in_any_pieces_and_company(family: str) -> None:
    rng = random.Random(family)
    runtime = runtime_of(model_of(family), owns_model=False)
    texts = prompts(rng, (18, 3, 10, 10))
    for text, rows in zip(texts, wander(runtime, texts, rng), strict=True):
        expected = own_rows(family, text)
        assert rows
        for at, row in rows.items():
            torch.testing.assert_close(row, expected[at], atol=TOLERANCE, rtol=0)


def new_tokens(family: str, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Return what transformers' `generate` writes behind left-padded prompts, each row up to its end."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model = model_of(family)
    found = model.generate(
        ids, attention_mask=mask, pad_token_id=0, do_sample=False, **options, **EXACT.get(family, {})
    )
    end = model.generation_config.eos_token_id
    rows = [row[width:] for row in found.tolist()]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def written(runtime: Runtime, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Return what the engine writes for the prompts together: all outputs of each."""
    engine = Engine(runtime)
    numbers = [engine.submit(request(prompt, **options)) for prompt in prompts]
    found = results(drain(engine))
    outputs = [found[number] for number in numbers]
    for each in outputs:
        assert isinstance(each, tuple), each
    return [list(output.token_ids) for each in outputs for output in each]


GREEDY: dict[str, Any] = {"max_new_tokens": 12}
BEAM: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 2}
PENALISED: dict[str, Any] = {"max_new_tokens": 16, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}


SINGLE = [(family, options) for family in OTHERS for options in (GREEDY, BEAM, PENALISED)]


@pytest.mark.parametrize(("family", "options"), sampled(SINGLE, 16))
def test_a_single_prompt_gives_the_tokens_of_transformers(family: str, options: dict[str, Any]) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    assert written(runtime, PROMPTS[:1], **options) == new_tokens(family, PROMPTS[:1], **options)


@pytest.mark.parametrize("family", sampled([each for each in OTHERS if each not in MISLED_BY_PADDING], 5))
def test_a_batch_gives_the_tokens_of_transformers_left_padded_one(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    for options in (GREEDY, BEAM):
        assert written(runtime, PROMPTS, **options) == new_tokens(family, PROMPTS, **options)


@pytest.mark.parametrize("family", sorted(MISLED_BY_PADDING))
def test_a_batch_gives_each_prompt_what_it_gets_alone(family: str) -> None:
    runtime, unlike = runtime_of(model_of(family), owns_model=False), [*PROMPTS, PROMPTS[1][:2]]
    alone = [new_tokens(family, [prompt], **GREEDY)[0] for prompt in unlike]
    assert written(runtime, unlike, **GREEDY) == alone
    assert new_tokens(family, unlike, **GREEDY) != alone, "transformers is right by now: test it as the others are"


@pytest.mark.parametrize("family", ["bloom", "falcon_alibi", "mamba", "jamba", "llama4", "rwkv", "openai", "xlnet"])
def test_drafts_from_the_prompt_change_no_token_of_a_greedy_output(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    prompt = PROMPTS[1] * 3
    plain = written(runtime, [prompt, PROMPTS[0]], max_new_tokens=24)
    assert written(runtime, [prompt, PROMPTS[0]], max_new_tokens=24, prompt_lookup_num_tokens=4) == plain


@pytest.mark.parametrize("family", ["gptj", "mamba2", "bamba", "xlm"])
def test_a_draw_is_the_same_alone_and_in_company(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    options: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3, "max_new_tokens": 10}
    alone = [row for prompt in PROMPTS for row in written(runtime, [prompt], **options)]
    assert written(runtime, PROMPTS, **options) == alone
    assert len({tuple(row) for row in alone}) > 3


RECORDED = [case for kind in ("greedy", "beam", "contrastive", "group_beam") for case in oracle_cases(kind)[:6]]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", sampled(RECORDED, 12), ids=lambda case: case["id"])
def test_recorded_runs_of_transformers_are_repeated(case: dict[str, Any], use_cache: bool) -> None:
    """These models run on the slot cache; here their recorded outputs judge this runtime, whatever the strategy."""
    model = oracle_model(case["model"])
    runtime = GenericRuntime(model, owns_model=False, use_cache=use_cache)
    lm = LanguageModel(runtime, None, config=GenerationConfig.from_transformers(model.generation_config))
    generations = lm.generate(real_prompts(case), **case["kwargs"])
    found = [list(each.token_ids) for generation in generations for each in generation.completions]
    assert found == case["expected"]["completions"]


def contrastive(model: Any, prompt: list[int], *, alpha: float, k: int, count: int) -> list[int]:
    """Contrastive search written out: every candidate is read anew, with all tokens before it."""

    def read(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        states: list[torch.Tensor] = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        hook.remove()
        return logits, states[0]

    tokens = list(prompt)
    for _ in range(count):
        best = read(tokens)[0].softmax(-1).topk(k)
        scores = []
        for chance, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            states = read([*tokens, token])[1]
            likeness = torch.cosine_similarity(states[:-1], states[-1:], dim=-1).max().item()
            scores.append((1 - alpha) * chance - alpha * likeness)
        tokens.append(best.indices[max(range(k), key=scores.__getitem__)].item())
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["bloom", "gptj", "mamba", "jamba", "openai"])
def test_contrastive_search_is_what_it_is_written_out(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    found = written(runtime, PROMPTS[:1], penalty_alpha=0.6, top_k=4, max_new_tokens=8, eos_token_id=0)
    assert found == [contrastive(model_of(family), PROMPTS[0], alpha=0.6, k=4, count=8)]


@pytest.mark.parametrize("family", ["falcon", "mamba2", "xlnet"])
def test_diverse_beams_of_one_group_are_beams(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 4}
    groups = written(runtime, PROMPTS[:1], num_beam_groups=2, diversity_penalty=1e-9, **options)
    # Groups that hardly disturb one another find the beams of half the width, each twice.
    half = written(runtime, PROMPTS[:1], **options | {"num_beams": 2, "num_return_sequences": 2})
    assert sorted(map(tuple, groups)) == sorted(2 * [tuple(row) for row in half])


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("bloom", "transformer.h"),
        ("mamba", "backbone.layers"),
        ("gptj", "transformer.h"),
        ("falcon_h1", "model.layers"),
    ],
)
def test_hidden_states_and_inner_rows_are_what_the_head_reads(family: str, layers: str) -> None:
    model, runtime = tiny_model(family), runtime_of(tiny_model(family), owns_model=True)
    first, second = prompts(random.Random(3), (7, 5))
    assert runtime.info.hidden_states and runtime.info.num_layers == model.config.num_hidden_layers
    rows = runtime.forward([feed(0, first, hidden=True), feed(1, second, asked=(1, 4), layers=(1,))])
    states: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    model.get_submodule(layers)[1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
    with torch.no_grad():
        model(torch.tensor([second]), use_cache=False)
        torch.testing.assert_close(head(rows.hidden), rows.logits[:7] / scale_of(model), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(rows.inner, head(states[0][[1, 4]]), atol=TOLERANCE, rtol=0)


def scale_of(model: Any) -> float:
    """Return what the model multiplies its head's output by."""
    return float(getattr(model.config, "lm_head_multiplier", 1.0))


def passes_of(runtime: Any) -> list[tuple[int, int]]:
    """Return a list that will hold (sequences, new tokens) of every call from now on."""
    calls: list[tuple[int, int]] = []
    run, step = runtime._model.run, runtime._model.step

    def counting(ids: torch.Tensor, tree: Any, num_new: int, *args: Any, **options: Any) -> Any:
        calls.append((len(ids), num_new))
        return run(ids, tree, num_new, *args, **options)

    def counting_steps(ids: torch.Tensor, tree: Any) -> Any:
        calls.append((len(ids), 1))
        return step(ids, tree)

    runtime._model.run, runtime._model.step = counting, counting_steps
    return calls


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_sequences_of_one_length_share_a_call(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    calls = passes_of(runtime)
    runtime.forward([feed(seq, [5 + seq] * 4) for seq in range(3)])
    runtime.fork(1, 7)
    runtime.forward([feed(0, [5]), feed(7, [6]), feed(1, [7])])
    runtime.forward([feed(2, [8])])
    runtime.forward([feed(seq, [9]) for seq in (2, 1, 0)])
    assert calls == [(3, 4), (3, 1), (1, 1), (3, 1)]


def test_a_model_that_mixes_up_a_batch_is_run_one_sequence_at_a_time() -> None:
    """RWKV's step broadcasts the states of all sequences over each."""
    runtime = runtime_of(model_of("rwkv"), owns_model=False)
    calls = passes_of(runtime)
    runtime.forward([feed(0, [5, 6]), feed(1, [7, 8])])
    assert calls == [(1, 2), (1, 2)] and "one sequence at a time" in runtime.info.backend


class Unbatched(transformers.BloomModel):
    """Mixes up the sequences of a batch, or refuses several."""

    refuses = False

    @functools.wraps(transformers.BloomModel.forward)
    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if self.refuses and len(input_ids) > 1:
            raise ValueError("one sequence, please")
        output = super().forward(input_ids, **options)
        states = output.last_hidden_state
        output.last_hidden_state = states + 0.1 * (states.mean(0, keepdim=True) - states[:1])
        return output


@pytest.mark.parametrize("refuses", [False, True])
def test_a_model_that_cannot_read_sequences_together_is_run_one_at_a_time(refuses: bool) -> None:
    model = tiny_model("bloom")
    model.transformer = Unbatched(model.config).eval()
    model.transformer.refuses = refuses
    runtime = GenericRuntime(model, owns_model=False)
    calls = passes_of(runtime)
    rows = runtime.forward([feed(0, [5, 6]), feed(1, [7, 8])]).logits
    assert calls == [(1, 2), (1, 2)] and "one sequence at a time" in runtime.info.backend
    expected = [model(torch.tensor([tokens])).logits[0] for tokens in ([5, 6], [7, 8])]
    torch.testing.assert_close(rows, torch.cat(expected).detach(), atol=TOLERANCE, rtol=0)


class Forgetful(transformers.BloomModel):
    """Keeps a number outside of the cache: the first token of the newest prompt, or the sum of all tokens since."""

    counts_all = False

    @functools.wraps(transformers.BloomModel.forward)
    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        cache = next((options[name] for name in cache_names() if options.get(name) is not None), None)
        sums, begins = input_ids.sum(1)[:, None, None], cache is None or cache.get_seq_length() == 0
        if self.counts_all:
            self.__dict__["kept"] = sums if begins else self.kept + sums
        elif begins:
            self.__dict__["kept"] = input_ids[:, :1, None]
        output = super().forward(input_ids, **options)
        output.last_hidden_state = output.last_hidden_state * (1 + 0.01 * self.kept)
        return output


@pytest.mark.parametrize("counts_all", [False, True])
def test_a_model_with_state_outside_of_its_cache_is_not_run_on_its_cache(counts_all: bool) -> None:
    model = tiny_model("bloom")
    model.transformer = Forgetful(model.config).eval()
    model.transformer.counts_all = counts_all
    with pytest.raises(ModelError, match="gives other results on its own cache"):
        GenericRuntime(model, owns_model=False)


@pytest.mark.parametrize(("family", "continues"), [("mamba", False), ("mamba2", True)])
def test_several_tokens_on_top_of_a_recurrent_state_are_tried_at_the_first_need(family: str, continues: bool) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    calls = passes_of(runtime)
    tokens = list(range(3, 60))
    runtime.forward([feed(0, tokens[:50])])
    runtime.forward([feed(0, tokens[50:51])])
    assert calls == [(1, 50), (1, 1)] and "token by token" not in runtime.info.backend
    assert runtime.info.reads_whole
    rows = runtime.forward([feed(0, tokens[51:54], asked=(0, 1, 2))]).logits
    torch.testing.assert_close(rows, own_rows(family, tokens[:54])[51:], atol=TOLERANCE, rtol=0)
    assert ("token by token after the prompt" in runtime.info.backend) is not continues
    assert runtime.info.reads_whole is not continues
    calls.clear()
    runtime.forward([feed(0, tokens[54:])])
    assert calls == ([(1, 3)] if continues else [(1, 1)] * 3), "no further trial"


def test_a_long_prompt_tells_if_the_next_one_can_come_in_parts() -> None:
    for family, reads_whole in (("mamba", True), ("mamba2", False)):
        runtime = runtime_of(model_of(family), owns_model=False)
        assert runtime.info.reads_whole
        runtime.forward([feed(0, [5] * 257)])
        assert runtime.info.reads_whole is reads_whole


def probed(family: str) -> Any:
    """Return a runtime that has tried to read several tokens on top of a recurrent state."""
    runtime: Any = runtime_of(model_of(family), owns_model=False)
    runtime.forward([feed(9, [3])])
    runtime.forward([feed(9, [4, 5])])
    runtime.release(9)
    return runtime


def test_a_recurrent_state_goes_back_to_any_token_of_its_last_feed() -> None:
    runtime = probed("mamba")
    calls = passes_of(runtime)
    runtime.forward([feed(0, range(3, 90))])
    runtime.forward([feed(0, [5, 6, 7])])
    assert runtime.truncate(0, 89) == 89 and runtime.truncate(0, 88) == 88
    assert calls == [(1, 87), (1, 1), (1, 1), (1, 1)]
    assert runtime.truncate(0, 86) == 0


def test_many_tokens_on_top_of_a_state_that_takes_one_at_a_time_are_read_with_those_before() -> None:
    runtime = probed("mamba")
    calls = passes_of(runtime)
    runtime.forward([feed(0, range(3, 20))])
    row = runtime.forward([feed(0, range(20, 40), asked=(19,))]).logits[0]
    assert calls == [(1, 17), (1, 37)]
    torch.testing.assert_close(row, own_rows("mamba", list(range(3, 40)))[-1], atol=TOLERANCE, rtol=0)
    assert runtime.truncate(0, 30) == 17


def test_a_full_window_goes_back_to_before_the_last_feed_alone() -> None:
    runtime = runtime_of(model_of("llama4"), owns_model=False)
    runtime.forward([feed(0, [5] * 6)])
    assert runtime.truncate(0, 4) == 4
    runtime.forward([feed(0, [6] * 20)])
    runtime.forward([feed(0, [7, 8, 9])])
    assert runtime.truncate(0, 25) == 24
    assert runtime.truncate(0, 23) == 0


class Failure(Exception):
    pass


@pytest.mark.parametrize("family", ["bloom", "mamba", "jamba", "openai"])
def test_a_forward_that_raises_leaves_every_sequence_as_it_was(family: str) -> None:
    runtime: Any = runtime_of(tiny_model(family), owns_model=True)
    first, second = prompts(random.Random(8), (9, 12))
    runtime.forward([feed(0, first), feed(1, second)])
    calls = [0]

    def fail_late(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise Failure

    hook = runtime._wrapped.module.get_output_embeddings().register_forward_hook(fail_late)
    with pytest.raises(Failure):
        runtime.forward([feed(0, [5]), feed(1, [6, 7]), feed(2, [8])])
    hook.remove()
    assert 2 not in runtime._table.live
    rows = runtime.forward([feed(0, [7, 8]), feed(1, [9])]).logits
    expected = [own_rows(family, [*first, 7, 8])[-2:], own_rows(family, [*second, 9])[-1:]]
    torch.testing.assert_close(rows, torch.cat(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["bloom", "xlm"])
def test_what_cannot_be_had_is_refused(family: str) -> None:
    runtime = runtime_of(model_of(family), owns_model=False)
    assert not runtime.info.batch_invariant
    with pytest.raises(ModelError, match="independent of other rows: it runs"):
        runtime.forward([feed(0, [5], invariant=True)])
    source = Source(inputs={"pixel_values": torch.zeros(1, 3, 4, 4), "attention_mask": torch.ones(1, 1)})
    with pytest.raises(ModelError, match="no source|cannot read the prompt"):
        runtime.forward([feed(0, [5], source=source)])
    runtime.check()  # type: ignore[attr-defined]


def test_layers_that_the_head_cannot_read_are_refused() -> None:
    runtime = runtime_of(model_of("xlnet"), owns_model=False)
    with pytest.raises(ModelError, match="no inner layers"):
        runtime.forward([feed(0, [5], layers=(0,))])


@pytest.mark.parametrize("family", sampled([each for each in OTHERS if each != "rwkv"], 5) + ["rwkv"])
def test_the_users_model_stays_as_it_is(family: str) -> None:
    model = tiny_model(family).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: (type(module), module.training) for name, module in model.named_modules()}
    hooks = {name: (len(each._forward_hooks), len(each._forward_pre_hooks)) for name, each in model.named_modules()}
    config = model.config.to_dict()
    runtime = runtime_of(model, owns_model=False, pack=True)
    row = runtime.forward([feed(0, PROMPTS[0], asked=(10,), hidden=True)]).logits[0]
    torch.testing.assert_close(row, own_rows(family, PROMPTS[0])[-1], atol=TOLERANCE, rtol=0)
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == modules
    found = {name: (len(each._forward_hooks), len(each._forward_pre_hooks)) for name, each in model.named_modules()}
    assert found == hooks and model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["bloom", "mamba", "openai", "rwkv"])
def test_a_training_step_is_seen_when_the_next_sequence_opens(family: str) -> None:
    model = tiny_model(family)
    runtime = runtime_of(model, owns_model=False, pack=True)
    before = runtime.forward([feed(0, PROMPTS[0])]).logits
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
        expected = model(torch.tensor([PROMPTS[0]]), use_cache=False).logits[0]
    after = runtime.forward([feed(1, PROMPTS[0])]).logits
    torch.testing.assert_close(after, expected, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(after, before, atol=0.01)


@pytest.mark.usefixtures("packed_layers")
def test_writes_through_data_are_seen_after_refresh() -> None:
    model = tiny_model("bloom")
    runtime = runtime_of(model, owns_model=False, pack=True)
    before = runtime.forward([feed(0, [5, 6])]).logits
    model.transformer.h[0].mlp.dense_4h_to_h.weight.data.mul_(0.3)
    assert torch.equal(runtime.forward([feed(1, [5, 6])]).logits, before)
    refresh(model)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]])).logits[0]
    after = runtime.forward([feed(2, [5, 6])]).logits
    torch.testing.assert_close(after, expected, atol=1e-3, rtol=1e-4)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("length", [5, 97])
def test_xlnet_writes_at_any_length_what_transformers_writes_without_its_memory(length: int) -> None:
    """By default `generate` uses XLNet's memory of earlier steps, which gives other logits than a whole forward."""
    ids = torch.randint(5, VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(length))
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model_of("xlnet").generate(ids, attention_mask=torch.ones_like(ids), use_mems=False, **options)
    assert torch.equal(unspool.generate(model_of("xlnet"), ids, **options), expected)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_stay_near_their_float32_selves(family: str, dtype: torch.dtype) -> None:
    runtime = runtime_of(tiny_model(family, dtype=dtype), owns_model=True)
    assert "own cache" in runtime.info.backend
    widened = tiny_model(family, dtype=dtype).float()
    rows = torch.cat([runtime.forward([feed(0, PROMPTS[0][:6])]).logits, runtime.forward([feed(0, [7, 8])]).logits])
    with torch.no_grad():
        expected = widened(torch.tensor([[*PROMPTS[0][:6], 7, 8]]), use_cache=False).logits[0]
    assert rows.dtype == torch.float32
    assert (rows - expected).abs().mean() < 0.02 * expected.abs().max()


def test_of_the_states_on_the_way_through_a_feed_the_first_and_the_newest_are_kept() -> None:
    runtime: Any = runtime_of(model_of("mamba"), owns_model=False)
    runtime.forward([feed(0, [5] * 300)])
    runtime.forward([feed(0, [6] * 12)])
    assert runtime.truncate(0, 308) == 308
    assert runtime.truncate(0, 302) == 300


@pytest.mark.parametrize("family", ["mamba", "mamba2", "jamba", "rwkv", "bloom"])
def test_every_token_of_a_long_prompt_is_read_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one longer than a pass, and one whose every row is wanted."""
    limits = {} if "mamba" in family or family in ("bloom", "rwkv") else {"max_position_embeddings": 2048}
    lm = unspool.load(tiny_model(family, **limits))
    prompt, counts = [7 * place % 90 + 3 for place in range(600)], []
    run, step = CausalModel.run, CausalModel.step

    def counted(model: CausalModel, ids: torch.Tensor, tree: Any, num_new: int, *args: Any, **options: Any) -> Any:
        counts.append(len(ids) * num_new)
        return run(model, ids, tree, num_new, *args, **options)

    def counted_step(model: CausalModel, ids: torch.Tensor, tree: Any) -> Any:
        counts.append(len(ids))
        return step(model, ids, tree)

    monkeypatch.setattr(CausalModel, "run", counted)
    monkeypatch.setattr(CausalModel, "step", counted_step)
    lm.generate(prompt[::-1], max_new_tokens=1, eos_token_id=None)  # a probe can come before the first one
    counts.clear()
    lm.generate(prompt, max_new_tokens=4, eos_token_id=None)
    assert sum(counts) == len(prompt) + 3
    counts.clear()
    lm.score([5], prompt)
    assert len(prompt) <= sum(counts) <= len(prompt) + 1


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_a_prompt_whose_tokens_see_each_other_is_read_as_generate_reads_it(options: dict[str, Any]) -> None:
    """PaliGemma with text alone."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {"vocab_size": VOCAB_SIZE, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, **sizes}
    image = {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8, "num_image_tokens": 4, **sizes}
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text},
        vision_config={"model_type": "siglip_vision_model", **image},
        image_token_id=90,
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.PaliGemmaForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
    for length in (5, 300):
        prompt = torch.tensor([[7 * place % 80 + 3 for place in range(length)]])
        call: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, **options}
        assert unspool.generate(model, prompt, **call).equal(model.generate(prompt, **call))
