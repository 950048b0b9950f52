"""The cases: which work, on which checkpoint, for whom. Data alone; nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import inside
from benchmarks.checkpoints import Checkpoint
from benchmarks.prompts import TALE_PROMPT, mixed_prompts, prompt
from benchmarks.work import WEIGHT_BYTES, Case, Entry, Work

TALE = "tale"
"""The embedded model, by the name that `unspool.load` knows."""

PEERS = ("transformers", "ctranslate2", "llama.cpp")

_PIPELINE_BATCH = 16
_CTRANSLATE2_BATCH = 8
_NOT_A_BEAM_SEARCH = (
    "llama.cpp lacks beam search: it decodes 5 sequences in one batch a step, each greedily, which is the least that "
    "a beam search would cost it"
)
_SORTED = f"CTranslate2 sorts the prompts by length and takes {_CTRANSLATE2_BATCH} at a time, which suits it best"
_PADDED = f"transformers pads the prompts to the longest; {_SORTED}"
_PIPELINE = (
    f"transformers is its text-generation pipeline with batch_size={_PIPELINE_BATCH}; it and Unspool read and write "
    f"text here; {_SORTED}"
)
_UNQUANTIZED = "transformers runs the unquantized bfloat16 weights"
_SMALL = "The model is so small that a pass of the draft model costs nearly as much as a pass of the model"


def cases(checkpoints: Mapping[str, Checkpoint], *, quick: bool) -> list[Case]:
    """Return all cases in the order in which they are run: checkpoint by checkpoint, so that each is loaded once."""
    tokens = 8 if quick else 64
    gpt2, narrow, llama = (checkpoints[name] for name in ("gpt2-float32", "gpt2-bfloat16", "llama-bfloat16"))
    found = [
        _greedy(gpt2, tokens, runs=5),
        _beams(gpt2, tokens),
        _first_token(gpt2),
        _long_prompt(gpt2, 900, tokens // 2, runs=3),
        _batch(gpt2, 16, tokens),
        _texts(gpt2, 64, tokens),
        *inside.cases(gpt2, tokens),
        _greedy(narrow, tokens, runs=5),
        _beams(narrow, tokens),
        _first_token(narrow),
        _long_prompt(narrow, 900, tokens // 2, runs=3),
        _batch(narrow, 16, tokens),
        inside.beam_step(narrow, tokens),
        _greedy(llama, tokens, runs=3, llama_cpp=("f16", "bf16")),
        _quantized(llama, tokens, "int8", "q8_0"),
        _quantized(llama, tokens, "int4", "q4_0"),
        _beams(llama, tokens // 2, llama_cpp=("f16", "bf16")),
        _quantized_beams(llama, tokens // 2, "int8", "q8_0"),
        _quantized_beams(llama, tokens // 2, "int4", "q4_0"),
        _first_token(llama),
        _long_prompt(llama, 1500, tokens // 4, runs=1),
        inside.beam_step(llama, tokens // 2),
        *_tale(2 * tokens),
        _startup(),
    ]
    return [replace(case, runs=1) for case in found] if quick else found


def _case(checkpoint: Checkpoint, name: str, title: str, entries: tuple[Entry, ...], **further: Any) -> Case:
    """Return a case on a checkpoint; in float32 all sides must write the same."""
    same = {"same_tokens": checkpoint.dtype == "float32"}
    words = {"name": f"{checkpoint.name}/{name}", "title": title, "checkpoint": checkpoint.name}
    return Case(entries=entries, **{**words, **same, **further})


def _entries(checkpoint: Checkpoint, work: Work, *, llama_cpp: Sequence[str] = ("bf16",)) -> tuple[Entry, ...]:
    """Return Unspool and its peers for a piece of work; llama_cpp: the forms of weights that it runs a Llama in."""
    width = WEIGHT_BYTES[checkpoint.dtype]
    sides = [
        Entry(label="unspool", side="unspool", work=work, bytes_per_weight=width),
        Entry(label="transformers", side="transformers", work=work, bytes_per_weight=width),
        _converted("ctranslate2", work, checkpoint.dtype),
    ]
    if checkpoint.shape["model_type"] == "llama":
        sides += [_converted("llama.cpp", work, weights) for weights in llama_cpp]
    return tuple(sides)


def _converted(side: str, work: Work, weights: str) -> Entry:
    """Return a peer that has formats of its own."""
    if side == "ctranslate2" and len(work.prompts) > 1:
        work = replace(work, batch_size=_CTRANSLATE2_BATCH)
    width = WEIGHT_BYTES[weights]
    return Entry(label=f"{side} {weights}", side=side, work=work, load={"weights": weights}, bytes_per_weight=width)


def _greedy(checkpoint: Checkpoint, tokens: int, *, runs: int, **further: Any) -> Case:
    work = Work(prompts=(prompt(checkpoint, 32),), new_tokens=tokens)
    title = f"greedy, 1 prompt of 32, {tokens} new"
    return _case(checkpoint, "greedy", title, _entries(checkpoint, work, **further), runs=runs)


def _quantized(checkpoint: Checkpoint, tokens: int, bits: str, theirs: str) -> Case:
    """Return a greedy case with quantized weights. theirs: llama.cpp's form of about as many bytes."""
    work = Work(prompts=(prompt(checkpoint, 32, number=1),), new_tokens=tokens)
    width = WEIGHT_BYTES[checkpoint.dtype]
    entries = [
        _ours(work, bits),
        Entry(label="transformers", side="transformers", work=work, bytes_per_weight=width),
        _converted("llama.cpp", work, theirs),
    ]
    if bits == "int8":
        entries.insert(2, _converted("ctranslate2", work, "int8"))
    title = f"greedy in {bits.removeprefix('int')} bits, 1 prompt of 32, {tokens} new"
    return _case(checkpoint, f"{bits}-greedy", title, tuple(entries), note=_UNQUANTIZED)


def _quantized_beams(checkpoint: Checkpoint, tokens: int, bits: str, theirs: str) -> Case:
    """Return beam search with quantized weights, against five sequences of llama.cpp."""
    work = Work(prompts=(prompt(checkpoint, 32, number=2),), new_tokens=tokens, options={"num_beams": 5})
    entries = (_ours(work, bits), _converted("llama.cpp", work, theirs))
    title = f"beam search in {bits.removeprefix('int')} bits, 5 beams, 1 prompt of 32, {tokens} new"
    return _case(checkpoint, f"{bits}-beam-5", title, entries, note=_NOT_A_BEAM_SEARCH)


def _ours(work: Work, bits: str) -> Entry:
    load = {"quantize": bits}
    return Entry(label=f"unspool {bits}", side="unspool", work=work, load=load, bytes_per_weight=WEIGHT_BYTES[bits])


def _beams(checkpoint: Checkpoint, tokens: int, **further: Any) -> Case:
    work = Work(prompts=(prompt(checkpoint, 32, number=2),), new_tokens=tokens, options={"num_beams": 5})
    title = f"beam search, 5 beams, 1 prompt of 32, {tokens} new"
    note = _NOT_A_BEAM_SEARCH if further else ""
    return _case(checkpoint, "beam-5", title, _entries(checkpoint, work, **further), note=note)


def _first_token(checkpoint: Checkpoint) -> Case:
    work = Work(prompts=(prompt(checkpoint, 32, number=3),), new_tokens=1)
    title = "time to the first token, 1 prompt of 32"
    return _case(checkpoint, "first-token", title, _entries(checkpoint, work), runs=5)


def _long_prompt(checkpoint: Checkpoint, length: int, tokens: int, *, runs: int) -> Case:
    work = Work(prompts=(prompt(checkpoint, length),), new_tokens=tokens, watch_first=True)
    title = f"greedy, 1 prompt of {length}, {tokens} new"
    entries = _entries(checkpoint, work)
    return _case(checkpoint, "long-prompt", title, entries, measures=("first", "rest"), runs=runs)


def _batch(checkpoint: Checkpoint, count: int, tokens: int) -> Case:
    work = Work(prompts=mixed_prompts(checkpoint, count), new_tokens=tokens)
    title = f"greedy, {count} prompts of 3 to 138, {tokens} new each"
    return _case(checkpoint, f"batch-{count}", title, _entries(checkpoint, work), note=_PADDED)


def _texts(checkpoint: Checkpoint, count: int, tokens: int) -> Case:
    work = Work(prompts=mixed_prompts(checkpoint, count), new_tokens=tokens, batch_size=_PIPELINE_BATCH, text=True)
    title = f"greedy, {count} texts of 3 to 138 tokens, {tokens} new each"
    return _case(checkpoint, f"batch-{count}", title, _entries(checkpoint, work), runs=2, note=_PIPELINE)


def _tale(tokens: int) -> list[Case]:
    """Return the cases with a draft model, on the embedded model: both were trained on the same tales."""
    plain = Work(prompts=(TALE_PROMPT,), new_tokens=tokens)
    assisted = replace(plain, assisted=True)
    load = {"assistant": "draft", "dtype": "float32"}
    peers = tuple(Entry(label=side, side=side, work=assisted, load=load) for side in ("unspool", "transformers"))
    ways = tuple(
        Entry(label=label, side="unspool", work=work, load=load)
        for label, work in {"greedy": plain, "assisted": assisted}.items()
    )
    title = f"assisted decoding, {tokens} new"
    return [
        Case(
            name=f"{TALE}/assisted", title=title, checkpoint=TALE, entries=peers, same_tokens=True, runs=5, note=_SMALL
        ),
        Case(
            name=f"{TALE}/assisted-cost", title=f"{title}, against greedy", checkpoint=TALE, entries=ways, kind="cost"
        ),
    ]


def _startup() -> Case:
    lines = {
        "import torch, transformers": "import torch, transformers",
        "import unspool": "import unspool",
        "load, first token": "import unspool; print(unspool.load().generate('Once', max_new_tokens=1))",
    }
    entries = tuple(
        Entry(label=label, side="startup", work=Work(prompts=((1,),), new_tokens=1, options={"code": code}))
        for label, code in lines.items()
    )
    return Case(name="start-up", title="a new Python process", checkpoint=TALE, entries=entries, kind="cost")
