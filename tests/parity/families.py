"""Every family of models by every group of options: what transformers' generate writes, and what is known to differ.

A cell is a family and an option. In each, what Unspool writes must be what the same strategy writes on the
`PlainModel`, whose rows are the model's own, read without any cache; and, where transformers 5 has the option, what its
`generate` writes. tests/parity/test_families.py examines the cells, tools/write_compatibility.py renders them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

import unspool
from tests.tiny_models import CACHE, FAMILIES, GENERAL, RECOMPUTED, tiny_model
from tests.tiny_seq2seq import FAMILIES as SOURCED
from tests.tiny_seq2seq import random_source, tiny_seq2seq
from unspool.errors import UnspoolError
from unspool.model import LanguageModel
from unspool.types import Feed, Rows, Seq, Source

GROUPS: dict[str, tuple[str, ...]] = {
    "slot cache": tuple(FAMILIES),
    "generic backend": tuple(GENERAL),
    "recomputation": tuple(RECOMPUTED),
    "passes over equal lengths": tuple(SOURCED),
}
"""Families by the path that runs them, as `info.backend` names it."""

LABELS: dict[str, str] = {
    "gpt2": "GPT-2",
    "llama": "Llama, Code Llama",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "opt": "OPT",
    "phi": "Phi",
    "ctrl": "CTRL",
    "phi3": "Phi-3",
    "starcoder2": "Starcoder2",
    "cohere": "Cohere",
    "olmo2": "OLMo 2",
    "mixtral": "Mixtral",
    "gpt_oss": "gpt-oss",
    "granite": "Granite",
    "gpt_bigcode": "GPTBigCode",
    "persimmon": "Persimmon",
    "qwen3_moe": "Qwen3 MoE",
    "bloom": "Bloom",
    "falcon": "Falcon",
    "falcon_alibi": "Falcon, ALiBi",
    "falcon_grouped": "Falcon, new decoder",
    "gptj": "GPT-J",
    "codegen": "CodeGen",
    "mpt": "MPT",
    "gpt_neo": "GPT-Neo",
    "stablelm": "StableLM",
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
    "falcon_mamba": "Falcon Mamba",
    "rwkv": "RWKV",
    "jamba": "Jamba",
    "bamba": "Bamba",
    "falcon_h1": "Falcon-H1",
    "qwen3_next": "Qwen3-Next",
    "lfm2": "LFM2",
    "llama4": "Llama 4, text",
    "phimoe": "PhiMoE",
    "openai": "OpenAI GPT",
    "xlnet": "XLNet",
    "xlm": "XLM",
    "recurrent_gemma": "RecurrentGemma",
    "bert": "BERT, not as a decoder",
    "t5": "T5",
    "t5-gated": "T5, gated",
    "mt5": "mT5",
    "bart": "BART",
    "mbart": "mBART",
    "pegasus": "Pegasus",
    "marian": "Marian",
    "whisper": "Whisper",
    "vit-gpt2": "ViT and GPT-2",
    "vit-bert": "ViT and BERT",
    "trocr": "TrOCR",
    "git": "GIT",
}
"""Families as people call them."""

ENDS = [2, 40, 41, 42, 43]
PAD = 1
PROMPTS = [[52, 56, 8, 36, 68, 65, 54, 41, 64, 48, 77], [29, 3, 90, 15, 44, 71], [44, 71]]
NEGATIVE = [71, 12, 30]
FORCED = [17, 23]
SEED = 5


class Option(NamedTuple):
    """A group of options. theirs: whether transformers 5 has it and draws nothing, so that tokens can be compared."""

    options: dict[str, Any]
    theirs: bool = True


OPTIONS: dict[str, Option] = {
    "greedy": Option({"max_new_tokens": 14}),
    "lengths": Option({"min_new_tokens": 6, "max_new_tokens": 11}),
    "repetition_penalty": Option({"max_new_tokens": 14, "repetition_penalty": 1.4}),
    "no_repeat_ngram_size": Option({"max_new_tokens": 16, "no_repeat_ngram_size": 2}),
    "beams": Option({"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.8}),
    "several outputs": Option(
        {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 3, "early_stopping": True}
    ),
    "padded batch": Option({"max_new_tokens": 10}),
    "padded beams": Option({"max_new_tokens": 8, "num_beams": 3}),
    "prompt lookup": Option({"max_new_tokens": 16, "prompt_lookup_num_tokens": 3}),
    "assisted": Option({"max_new_tokens": 14}),
    "guidance": Option({"max_new_tokens": 10, "guidance_scale": 3.0}),
    "sampling": Option(
        {"max_new_tokens": 10, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 3}, False
    ),
    "beam sampling": Option({"max_new_tokens": 8, "do_sample": True, "num_beams": 3, "num_return_sequences": 2}, False),
    "diverse beams": Option(
        {"max_new_tokens": 8, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7}, False
    ),
    "constrained beams": Option({"max_new_tokens": 9, "num_beams": 5, "force_words_ids": [FORCED]}, False),
    "contrastive": Option({"max_new_tokens": 8, "penalty_alpha": 0.5, "top_k": 4}, False),
    "DoLa": Option({"max_new_tokens": 8, "dola_layers": "low"}, False),
    "inputs_embeds": Option({"max_new_tokens": 8, "num_beams": 2}),
}

Word: TypeAlias = Literal["exact", "differs there", "refused there", "our way", "refused", "wrong"]


class Finding(NamedTuple):
    """What was found in a cell, in a word, and in more.

    exact: all that was compared is equal. differs there: transformers' generate writes something else than the model
    says by itself, and Unspool does not. refused there: transformers refuses the call, or fails. our way: Unspool reads
    the model's states elsewhere than transformers 4 did. refused: Unspool refuses the option. wrong: anything else.
    """

    word: Word
    detail: str = ""


# --- the model by itself --------------------------------------------------------------------------------------------

READING_A_PLACE = ("xlnet", "xlm", "bert")
"""What follows a token cannot be read off a pass over more tokens: they attend in both directions."""
WITHOUT_EMBEDDINGS = ("mamba", "mamba2", "falcon_mamba")
"""The states they show begin behind the first layer, not before it."""


class PlainModel:
    """A runtime that runs the whole sequence through the model for every feed, and remembers nothing but tokens.

    Args:
        model: of transformers, called by its own forward.
        family: its key.
        like: the runtime it stands in for, whose `info` it has.
        by_head: whether hidden states are what the head reads, in place of the last ones that the model shows.
    """

    def __init__(self, model: Any, family: str, like: Any, *, by_head: bool = False) -> None:
        self.model, self.family, self.info, self.by_head = model, family, like.info, by_head
        self.source = getattr(like, "source", None)
        self._tokens: dict[Seq, tuple[int, ...]] = {}
        self._sources: dict[Seq, Source | None] = {}

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        logits, hidden, inner = [], [], []
        for feed in feeds:
            before = self._tokens.get(feed.seq, ())
            source = self._sources.setdefault(feed.seq, feed.source)
            self._tokens[feed.seq] = tokens = (*before, *feed.tokens)
            asked = [len(before) + at for at in feed.asked]
            if asked or feed.hidden:
                rows, states = self._read(tokens, source, range(len(before), len(tokens)) if feed.hidden else asked)
                logits += [rows[at] for at in asked]
                hidden += [states[-1][at] for at in range(len(before), len(tokens)) if feed.hidden]
                head = self.model.get_output_embeddings()
                inner += [head(states[layer][at][None])[0] for at in asked for layer in feed.layers]
        return Rows(
            torch.stack(logits).float() if logits else torch.empty(0, self.info.vocab_size),
            torch.stack(hidden).float() if hidden else None,
            torch.stack(inner).float() if inner else None,
        )

    def _read(self, tokens: Sequence[int], source: Source | None, places: Sequence[int]) -> tuple[Any, Any]:
        """Return what follows the places, by place, and what the layers have made of them, by layer and place."""
        if self.family in READING_A_PLACE:
            read = {at: self._call(tokens[: at + 1], source) for at in places}
            return {at: each[0][-1] for at, each in read.items()}, {-1: {at: e[1][-1][-1] for at, e in read.items()}}
        return self._call(tokens, source)

    def _call(self, tokens: Sequence[int], source: Source | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits [tokens or 1, vocab], and states [tokens or 1, width] before the first layer and after each."""
        ids, heard = torch.tensor([list(tokens)]), list[torch.Tensor]()
        hook = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: heard.append(given[0]))
        try:
            found = self._step(ids) if self.family in READING_A_PLACE else self._forward(ids, source)
        finally:
            hook.remove()
        states = list(getattr(found, "decoder_hidden_states", None) or found.hidden_states)
        if self.family in WITHOUT_EMBEDDINGS:
            states.insert(0, self.model.get_input_embeddings()(ids))
        if self.by_head:
            states[-1] = heard[0]
        # GIT has the image in front.
        return found.logits[0, -len(tokens) :], [each[0, -len(tokens) :] for each in states]

    def _forward(self, ids: torch.Tensor, source: Source | None) -> Any:
        name = "input_ids" if source is None or self.family == "git" else "decoder_input_ids"
        given = {} if source is None else source.inputs
        with torch.no_grad():
            return self.model(**given, **{name: ids}, use_cache=False, output_hidden_states=True)

    def _step(self, ids: torch.Tensor) -> Any:
        """Return what transformers' generate reads in its first step."""
        inputs = self.model.prepare_inputs_for_generation(
            ids, attention_mask=torch.ones_like(ids), use_cache=False, is_first_iteration=True
        )
        with torch.no_grad():
            return self.model(**inputs, output_hidden_states=True, return_dict=True)

    def fork(self, seq: Seq, child: Seq) -> None:
        self._tokens[child], self._sources[child] = self._tokens[seq], self._sources[seq]

    def truncate(self, seq: Seq, keep: int) -> int:
        self._tokens[seq] = self._tokens[seq][:keep]
        return len(self._tokens[seq])

    def release(self, seq: Seq) -> None:
        del self._tokens[seq], self._sources[seq]


# --- the three who write --------------------------------------------------------------------------------------------


@cache
def model_of(family: str) -> Any:
    return tiny_seq2seq(family) if family in SOURCED else tiny_model(family)


@cache
def ours_of(family: str) -> LanguageModel:
    return unspool.load(model_of(family))


@cache
def plain_of(family: str, *, by_head: bool = False) -> LanguageModel:
    ours = ours_of(family)
    return LanguageModel(PlainModel(model_of(family), family, ours.runtime, by_head=by_head), config=ours.config)


@cache
def draft_of(family: str) -> Any:
    """Return a model that mostly agrees with the family's: the same weights, moved a little."""
    model = copy.deepcopy(model_of(family))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    return model


def prompts_of(family: str, option: str) -> list[Any]:
    """Return what the cell's requests read: several in batches, else one."""
    count = len(PROMPTS) if option.startswith("padded") else 1
    if family in SOURCED:
        return [random_source(family, number, (9, 6, 3)[number]) for number in range(count)]
    return [PROMPTS[1] * 3] if option == "prompt lookup" else PROMPTS[:count]


def written(lm: LanguageModel, prompts: list[Any], **options: Any) -> list[list[int]]:
    """Return what a language model writes for each prompt: all outputs of each, best first."""
    return [
        list(completion.token_ids)
        for generation in lm.generate(_as_given(prompts), eos_token_id=ENDS, progress=False, **options)
        for completion in generation.completions
    ]


def _as_given(prompts: list[Any]) -> list[Any]:
    """Return prompts as callers give them: texts as token ids."""
    return [list(each.token_ids) if isinstance(each, Source) and each.token_ids else each for each in prompts]


# Without these, transformers' generate refuses beams (RWKV), or goes on with what it kept for other tokens.
WITHOUT_MEMORY: dict[str, dict[str, Any]] = {
    "rwkv": {"use_cache": False},
    "recurrent_gemma": {"use_cache": False},
    "bert": {"use_cache": False},
    "xlnet": {"use_mems": False},
    "xlm": {"use_cache": False},  # from 5.24 on
}


def theirs(family: str, prompts: list[Any], **options: Any) -> list[list[int]]:
    """Return what transformers' generate writes for a batch, each row up to its end."""
    options = {"pad_token_id": PAD, "eos_token_id": ENDS, **options, **WITHOUT_MEMORY.get(family, {})}
    model = model_of(family)
    if family in SOURCED:
        inputs = _batch_of_sources(prompts)
        start = 0 if family == "whisper" else 1  # Whisper's own leaves the start out
        if family == "git":
            inputs["input_ids"] = torch.full((len(prompts), 1), model.generation_config.bos_token_id)
        rows = _quietly(model, **inputs, **(options | {"pad_token_id": 0}))[:, start:].tolist()
        return [_cut_silence(row) if family == "whisper" else _cut(row) for row in rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    return [_cut(row) for row in _quietly(model, ids, (ids != PAD).long(), **options)[:, width:].tolist()]


def through_the_drop_in(family: str, prompts: list[Any], **options: Any) -> list[list[int]]:
    """Return what unspool.generate writes for a left-padded batch, each row up to its end."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    options = {"pad_token_id": PAD, "eos_token_id": ENDS, **options}
    found = unspool.generate(model_of(family), ids, attention_mask=(ids != PAD).long(), **options)
    assert isinstance(found, torch.Tensor)
    return [_cut(row) for row in found[:, width:].tolist()]


def _batch_of_sources(sources: list[Source]) -> dict[str, torch.Tensor]:
    """Return the encoder's arguments for all sources, texts padded on the right."""
    if not sources[0].token_ids:
        (name,) = sources[0].inputs
        return {name: torch.cat([source.inputs[name] for source in sources])}
    width = max(len(source.token_ids) for source in sources)
    rows = [[*source.token_ids, *[0] * (width - len(source.token_ids))] for source in sources]
    mask = [[1] * len(source.token_ids) + [0] * (width - len(source.token_ids)) for source in sources]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def _quietly(model: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ("input_ids", "attention_mask")
        return model.generate(**dict(zip(names, args, strict=False)), **{"do_sample": False, **options})


def _cut(row: list[int]) -> list[int]:
    end = next((at for at, token in enumerate(row) if token in ENDS), len(row))
    return row[: end + 1]


def _cut_silence(row: list[int]) -> list[int]:
    """Return a row as Whisper's own generate leaves it: without the end, and without what passes for a pad."""
    row = _cut(row)
    while row and row[-1] in (PAD, *ENDS):
        row = row[:-1]
    return row


def path_of(family: str) -> str:
    """Return which path runs the family, and why, in words."""
    return ours_of(family).info.backend


# --- what is known to differ ---------------------------------------------------------------------------------------


class Reason(NamedTuple):
    """Why the cells of some families and options are not exact."""

    word: Word
    families: tuple[str, ...]
    options: tuple[str, ...]
    text: str


REASONS: tuple[Reason, ...] = (
    Reason(
        "differs there",
        ("rwkv", "xlnet", "xlm", "recurrent_gemma"),
        ("padded batch", "padded beams"),
        "transformers lets pads into what this model reads, so that its batches differ from its single prompts. Here a "
        "batch is what its prompts are alone, and these are transformers'.",
    ),
    Reason(
        "differs there",
        ("mamba", "falcon_mamba") if CACHE == "cache" else ("mamba", "mamba2", "falcon_mamba"),
        ("guidance",),
        "transformers keeps what has been read of the negative prompt under a name that this model does not have, and "
        "so forgets it after the first token.",
    ),
    Reason(
        "differs there",
        ("bamba",),
        ("guidance",),
        "transformers gives the model no positions behind the negative prompt: each token there stands at position 0.",
    ),
    Reason(
        "differs there",
        ("xlnet", "xlm"),
        ("guidance",),
        "transformers does not tell the model of the place to be filled behind the negative prompt.",
    ),
    Reason(
        "refused there",
        ("openai",),
        ("guidance",),
        "transformers fails here: it counts on a cache, which this model does not have.",
    ),
    Reason(
        "differs there",
        ("bart", "mbart"),
        ("guidance",),
        "transformers has the encoder read the outputs. Here it reads the negative prompt, which is another source.",
    ),
    Reason(
        "refused there",
        ("t5", "t5-gated", "mt5", "pegasus", "marian"),
        ("guidance",),
        "transformers fails here: it has nothing for the encoder to read. Here that is the negative prompt, another "
        "source.",
    ),
    Reason(
        "refused",
        ("whisper", "vit-gpt2", "vit-bert", "trocr", "git"),
        ("guidance",),
        "Refused: other audio or another picture would have to be moved away from, and `negative_prompt` is a text.",
    ),
    Reason(
        "differs there",
        ("whisper",),
        ("several outputs",),
        "Whisper's own `generate` returns the best output again and again. Here they are the best, second best, ...",
    ),
    Reason(
        "our way",
        ("bert", "vit-bert"),
        ("contrastive",),
        "States are compared as they reach the output layer. This model has another layer before that one, and "
        "transformers 4 compared states in front of it.",
    ),
    Reason(
        "refused",
        ("opt", "rwkv", "openai", "xlnet", "xlm", "bert", *SOURCED),
        ("DoLa",),
        "Refused: there are no inner layers that the model's head could read, or the path does not show them.",
    ),
    Reason(
        "refused there",
        ("rwkv",),
        ("inputs_embeds",),
        "transformers refuses beams on the cache of this model, and embeddings need the cache.",
    ),
    Reason(
        "refused",
        ("ctrl", "bamba", "falcon_h1"),
        ("inputs_embeds",),
        "Refused, as in transformers: its `prepare_inputs_for_generation` does not take embeddings.",
    ),
    Reason(
        "refused",
        ("openai", "xlnet", "xlm", "recurrent_gemma", "bert"),
        ("inputs_embeds",),
        "Refused: every forward reads the whole sequence, and outputs have token ids, not embeddings.",
    ),
    Reason(
        "refused",
        ("whisper", "vit-gpt2", "vit-bert", "trocr", "git"),
        ("inputs_embeds",),
        "The encoder reads audio or an image, not text.",
    ),
)
KNOWN = {(family, option): reason for reason in REASONS for family in reason.families for option in reason.options}
"""(family, option) --> why it is not exact."""
CELLS = [(family, option) for families in GROUPS.values() for family in families for option in OPTIONS]


def expected_word(family: str, option: str) -> Word:
    """Return what is to be found in a cell."""
    reason = KNOWN.get((family, option))
    return "exact" if reason is None else reason.word


# --- a cell ---------------------------------------------------------------------------------------------------------


def examine(family: str, option: str) -> Finding:
    """Return what is found in a cell."""
    if option == "inputs_embeds":
        return _embedded(family)
    options, prompts = dict(OPTIONS[option].options), prompts_of(family, option)
    native = {"seed": SEED} if options.get("do_sample") else {}
    if option == "guidance":
        (native["negative_prompt"],) = (
            [NEGATIVE] if family not in SOURCED else _as_given([random_source(family, SEED, 4)])
        )
    if option == "assisted":
        native["assistant_model"] = unspool.load(draft_of(family))
    try:
        found = written(ours_of(family), prompts, **options, **native)
    except UnspoolError as error:
        return Finding("refused", str(error))
    # Drafts change nothing: what they help to write is what is written without.
    own = {name: value for name, value in native.items() if name != "assistant_model"}
    own |= {name: value for name, value in options.items() if name != "prompt_lookup_num_tokens"}
    expected = [row for prompt in prompts for row in written(plain_of(family), [prompt], **own)]
    if found != expected:
        is_ours = found == [row for each in prompts for row in written(plain_of(family, by_head=True), [each], **own)]
        return Finding("our way" if is_ours else "wrong", f"{found}, and the model itself says {expected}")
    if fault := _fault(family, option, found, options | native):
        return Finding("wrong", fault)
    return _beside_theirs(family, option, found) if OPTIONS[option].theirs else Finding("exact")


def _embedded(family: str) -> Finding:
    """Return what is found if the prompts of a padded batch are given as embeddings, a little off those of tokens."""
    model, prompts = model_of(family), prompts_of(family, "padded batch")
    if family in SOURCED:
        given = _batch_of_sources(prompts)
    else:
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        given = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    ids = given.pop("input_ids", None)
    if ids is None:
        return Finding("refused", "the model reads no text")
    options = {"pad_token_id": PAD, "eos_token_id": ENDS, **OPTIONS["inputs_embeds"].options}
    given["inputs_embeds"] = model.get_input_embeddings()(ids).detach() * 1.1
    try:
        found = unspool.generate(model, **given, **options)
    except UnspoolError as error:
        return Finding("refused", str(error))
    try:
        expected = _quietly(model, **given, **options)
    except Exception as error:  # whatever stops it
        return Finding("refused there", f"{type(error).__name__}: {error}")
    assert isinstance(found, torch.Tensor)
    rows, others = ([_cut(row) for row in written_rows.tolist()] for written_rows in (found, expected))
    return (
        Finding("exact") if rows == others else Finding("differs there", f"{others}, and the model itself says {rows}")
    )


def _fault(family: str, option: str, found: list[list[int]], options: dict[str, Any]) -> str:
    """Return what is wrong with an output by itself, or ""."""
    if option == "constrained beams":
        pairs = list(zip(found[0], found[0][1:], strict=False))
        return "" if tuple(FORCED) in pairs else f"{found} does not hold {FORCED}"
    if option == "sampling":
        several = prompts_of(family, "padded batch")
        together = written(ours_of(family), several, **options)
        return "" if together[: len(found)] == found else f"{found} alone, {together} in company"
    return ""


def _beside_theirs(family: str, option: str, found: list[list[int]]) -> Finding:
    options, prompts = dict(OPTIONS[option].options), prompts_of(family, option)
    if family not in SOURCED:
        call = dict(options)
        if option == "guidance":
            call["negative_prompt_ids"] = torch.tensor([NEGATIVE])
        if option == "assisted":
            call["assistant_model"] = draft_of(family)
        if (dropped_in := through_the_drop_in(family, prompts, **call)) != found:
            return Finding("wrong", f"{found}, and the drop-in writes {dropped_in}")
        if option == "guidance":
            options = call
    options.pop("prompt_lookup_num_tokens", None)  # which transformers has for some families, and changes no token
    try:
        expected = theirs(family, prompts, **options)
    except Exception as error:  # whatever stops it
        return Finding("refused there", f"{type(error).__name__}: {error}")
    if family == "whisper":
        found = [_cut_silence(row) for row in found]
    return (
        Finding("exact")
        if found == expected
        else Finding("differs there", f"{expected}, and the model itself says {found}")
    )
