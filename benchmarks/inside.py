"""Cases that compare two ways to use Unspool: the cost of strategies, and the parts of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.checkpoints import Checkpoint
from benchmarks.prompts import prompt
from benchmarks.work import WEIGHT_BYTES, Case, Entry, Work

STEP_PARTS = "step-parts"

_GONE = "transformers 5 has it no more"


def cases(checkpoint: Checkpoint, tokens: int) -> list[Case]:
    """Return all of them on one checkpoint."""
    groups = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5}
    contrastive = {"penalty_alpha": 0.6, "top_k": 4}
    return [
        beam_step(checkpoint, tokens),
        _ways(
            checkpoint,
            "diverse-beam",
            "3 diverse groups of 2 beams against 6 plain beams",
            {"6 beams": {"num_beams": 6}, "3 groups of 2": groups},
            tokens,
            note=_GONE,
        ),
        _ways(
            checkpoint,
            "contrastive",
            "contrastive search among 4 candidates against greedy",
            {"greedy": {}, "contrastive": contrastive},
            tokens,
            note=_GONE,
        ),
        _shared_prefix(checkpoint, 900, tokens // 2),
        _step_parts(checkpoint, tokens // 2),
    ]


def beam_step(checkpoint: Checkpoint, tokens: int) -> Case:
    """Return the cost of a step of five beams, relative to a greedy step."""
    ways: dict[str, Mapping[str, Any]] = {"greedy": {}, "5 beams": {"num_beams": 5}}
    return _ways(checkpoint, "beam-step", "a step of 5 beams against a greedy one", ways, tokens)


def _ways(
    checkpoint: Checkpoint, name: str, title: str, ways: Mapping[str, Mapping[str, Any]], tokens: int, note: str = ""
) -> Case:
    """Return different options on a prompt of one token, so that prefill is like any other step."""
    entries = tuple(
        _entry(checkpoint, label, Work(prompts=(prompt(checkpoint, 1),), new_tokens=tokens, options=options))
        for label, options in ways.items()
    )
    return _cost(checkpoint, name, title, entries, note=note)


def _shared_prefix(checkpoint: Checkpoint, length: int, tokens: int) -> Case:
    """Return beams and samples after one long prompt; a step reads its keys and values once for all rows.

    Without shared-prefix attention, a step of 16 samples would read these keys and values 16 times.
    """
    ways: dict[str, Mapping[str, Any]] = {
        "greedy": {},
        "5 beams": {"num_beams": 5},
        "16 samples": {"do_sample": True, "num_return_sequences": 16, "seed": 0},
    }
    entries = tuple(
        _entry(checkpoint, label, Work(prompts=(prompt(checkpoint, length),), new_tokens=tokens, options=options))
        for label, options in ways.items()
    )
    title = f"beams and samples after 1 prompt of {length}, {tokens} new each, against greedy"
    return _cost(checkpoint, "shared-prefix", title, entries, note="All entries read the prompt in the same time")


def _step_parts(checkpoint: Checkpoint, tokens: int) -> Case:
    """Return 1, 16 and 64 requests with prompts of one token, measured by the parts of their steps."""
    crowds = {count: tuple(prompt(checkpoint, 1, number=number) for number in range(count)) for count in (1, 16, 64)}
    entries = tuple(
        _entry(checkpoint, f"{count} request{'s' * (count > 1)}", Work(prompts=prompts, new_tokens=tokens))
        for count, prompts in crowds.items()
    )
    return _cost(checkpoint, STEP_PARTS, "the parts of a step", entries, runs=1)


def _entry(checkpoint: Checkpoint, label: str, work: Work) -> Entry:
    return Entry(label=label, side="unspool", work=work, bytes_per_weight=WEIGHT_BYTES[checkpoint.dtype])


def _cost(checkpoint: Checkpoint, name: str, title: str, entries: tuple[Entry, ...], **further: Any) -> Case:
    words = {"name": f"{checkpoint.name}/{name}", "title": title, "checkpoint": checkpoint.name}
    return Case(entries=entries, kind="cost", **{**words, **further})
