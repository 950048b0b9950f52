"""Measurements as plain data: a piece of work, the entry that does it, and the case that compares entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

Measure: TypeAlias = Literal["whole", "first", "rest"]
"""The compared time of a run: all of its time, the time to the first token, or the time of each token after it."""

Kind: TypeAlias = Literal["peers", "cost"]
"""Whether a case sets peers against Unspool, or one way of using Unspool against another."""

WEIGHT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "bf16": 2.0,
    "f16": 2.0,
    "int8": 1.0,
    "q8_0": 34 / 32,
    "int4": 5 / 8,
    "q4_0": 18 / 32,
}
"""Bytes per weight of each form, with its scales."""

_BRIEF_PROMPT, _BRIEF_TOKENS = 32, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One call of a side, the same for all sides.

    prompts: token ids. new_tokens: of each output, exactly. options: of the search, under transformers' names.
    batch_size: how many prompts a side that pads puts together; None for all of them.
    watch_first: whether the time to the first token is wanted as well; for one prompt without beams.
    text: true if prompts and outputs are text, for sides that support it.
    assisted: whether the draft model helps that was loaded.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    watch_first: bool = False
    text: bool = False
    assisted: bool = False

    def brief(self) -> Work:
        """Return a short piece of the same work, to warm up."""
        prompts = tuple(prompt[:_BRIEF_PROMPT] for prompt in self.prompts)
        return replace(self, prompts=prompts, new_tokens=min(_BRIEF_TOKENS, self.new_tokens), watch_first=False)

    def one_pass(self) -> Work:
        """Return the least work that reads every weight once: one new token after a prompt of one."""
        prompts = tuple(prompt[:1] for prompt in self.prompts[:1])
        return replace(self, prompts=prompts, new_tokens=1, options={}, batch_size=None, watch_first=False)

    def turned(self, number: int) -> Work:
        """Return the same work on prompts that begin elsewhere, in a circle: nothing known of the others helps."""
        prompts = (prompt[number % len(prompt) :] + prompt[: number % len(prompt)] for prompt in self.prompts)
        return replace(self, prompts=tuple(prompts))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Work:
        """Return the work that `to_dict` has written."""
        return cls(**{**values, "prompts": tuple(tuple(prompt) for prompt in values["prompts"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One competitor of a case.

    label: its name in the report. side: its worker. work: the piece of work. load: options of loading.
    bytes_per_weight: how wide it stores the matrices that every pass reads; None if unknown.
    """

    label: str
    side: str
    work: Work
    load: Mapping[str, Any] = field(default_factory=dict)
    bytes_per_weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Entries that take turns on one checkpoint. The others are compared with the first one.

    name: for `--only`, the checkpoint's name and a word or two. title: for the report. runs: counted rounds.
    same_tokens: true if all entries must generate the same tokens. note: a remark for readers of the figures.
    """

    name: str
    title: str
    checkpoint: str
    entries: tuple[Entry, ...]
    kind: Kind = "peers"
    measures: tuple[Measure, ...] = ("whole",)
    runs: int = 3
    same_tokens: bool = False
    note: str = ""
