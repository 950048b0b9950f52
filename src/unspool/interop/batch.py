"""Padded tensors to rows of real tokens, and outputs back to one padded tensor.

Owns: reading a padded batch of prompts, and padding the outputs. No pad is ever fed to the model.

    input_ids    [ pads | prompt ]
    sequences    [ pads | prompt | output | pads ]

For a model with an encoder, `prompt` is the decoder prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from unspool.errors import OptionError, PromptError
from unspool.types import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch of prompts.

    input_ids: [rows, width] int64, as given. prompts: each row's real tokens. sources: each row's encoder input, or
    embeddings, images and audio; empty without. attention_mask: [rows, width], True for the tokens of the prompts; None
    if unknown. embedded_width: columns of prompts that are embeddings without ids;
    `input_ids` is [rows, 0] then. task: "continue" for decoders; "rewrite" for encoder-decoders; "transcribe" for
    Whisper: its transcripts hold neither decoder prompt nor end token, and its `max_length` counts output only.
    """

    input_ids: torch.Tensor
    prompts: tuple[tuple[int, ...], ...]
    sources: tuple[Source, ...] = ()
    attention_mask: torch.Tensor | None = None
    embedded_width: int | None = None
    task: Literal["continue", "rewrite", "transcribe"] = "continue"

    @property
    def width(self) -> int:
        """Tokens of a row, pads included."""
        return self.input_ids.shape[1] if self.embedded_width is None else self.embedded_width

    def sequences(self, outputs: Sequence[Sequence[int]], pad_token_id: int | None) -> torch.Tensor:
        """Return each prompt as it was given, then its output, then pads.

        Args:
            outputs: token ids, those of one prompt adjacent, the same number per prompt.
            pad_token_id: None for none.

        Returns:
            [outputs, width + longest output] int64, on the device of `input_ids`.

        Raises:
            OptionError: if the outputs differ in length and `pad_token_id` is None.
        """
        prompts = self.input_ids.repeat_interleave(len(outputs) // len(self.prompts), dim=0)
        return torch.cat([prompts, self._padded(outputs, pad_token_id)], dim=1)

    def transcripts(
        self, outputs: Sequence[Sequence[int]], pad_token_id: int | None, ends: Sequence[int]
    ) -> torch.Tensor:
        """Return the outputs only, each without an end token of `ends`. Otherwise as `sequences`."""
        return self._padded([output[: len(output) - (output[-1] in ends)] for output in outputs], pad_token_id)

    def _padded(self, outputs: Sequence[Sequence[int]], pad_token_id: int | None) -> torch.Tensor:
        longest = max(map(len, outputs))
        if pad_token_id is None and any(len(output) < longest for output in outputs):
            hint = "give pad_token_id=, or set it in model.generation_config"
            raise OptionError("pad_token_id", None, "must be set if outputs differ in length", hint)
        fill = [] if pad_token_id is None else [pad_token_id]
        rows = [[*output, *fill * (longest - len(output))] for output in outputs]
        return torch.tensor(rows, dtype=torch.int64, device=self.input_ids.device)


def batch_of_bos(bos_token_id: int | None, device: torch.device) -> Batch:
    """Return a batch of one prompt that holds only the begin-of-sequence token.

    Raises:
        PromptError: if `bos_token_id` is None.
    """
    if bos_token_id is None:
        raise PromptError("neither `input_ids` nor `bos_token_id` is given: give one of them")
    return Batch(input_ids=torch.tensor([[bos_token_id]], device=device), prompts=((bos_token_id,),))


def read_batch(
    input_ids: Any,
    attention_mask: Any = None,
    position_ids: Any = None,
    *,
    pad_token_id: int | None = None,
    eos_token_ids: Sequence[int] = (),
    ignored: list[OptionError] | None = None,
) -> Batch:
    """Return the prompts of a padded batch: the tokens under the mask.

    Args:
        input_ids: [rows, width] of any integer dtype.
        attention_mask: [rows, width], 1 for tokens and 0 for pads. None to infer it as transformers does: pads are the
            tokens equal to `pad_token_id`, or none if that token also ends sequences.
        position_ids: None, or exactly the positions that follow from the mask, on its real tokens.
        ignored: collects an error about pads that are not on the left only, which are left out; None to raise it.

    Raises:
        PromptError: if the tensors have other types or shapes, or with `ignored=None` a row holds only pads.
    """
    ids = _two_dimensional("input_ids", input_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(f"`input_ids` must hold integers, got {ids.dtype}")
    if not ids.numel():
        raise PromptError(f"`input_ids` holds no token, its shape is {tuple(ids.shape)}; give at least one per row")
    ids = ids.long()
    is_inferred = attention_mask is None
    mask = _infer_mask(ids, pad_token_id, eos_token_ids) if is_inferred else _read_mask(attention_mask, ids)
    source = f" (from pad_token_id={pad_token_id}: give `attention_mask` if these are not pads)" if is_inferred else ""
    if position_ids is not None:
        _check_positions(_two_dimensional("position_ids", position_ids), mask)
    mask = readable_mask(mask, ignored, source)
    rows = zip(ids, mask.to(ids.device), strict=True)
    return Batch(input_ids=ids, prompts=tuple(tuple(row[kept].tolist()) for row, kept in rows), attention_mask=mask)


def readable_mask(mask: torch.Tensor, ignored: list[OptionError] | None, source: str = "") -> torch.Tensor:
    """Return the mask with all tokens of a row that it hides wholly.

    Args:
        mask: [rows, width].
        ignored: as in `read_batch`.
        source: names the origin of the mask in the error.

    Raises:
        PromptError: with `ignored=None`, if a row holds only pads, or pads that are not on its left.
    """
    mask = with_tokens(mask, ignored, source)
    if reason := _misplaced_pads(mask):
        if ignored is None:
            raise PromptError(f"{reason}{source}; set tokenizer.padding_side='left'")
        allowed = f"puts pads at the end of prompts or inside of them ({reason}{source}), which are read without pads"
        ignored.append(OptionError("attention_mask", "a mask", allowed, "set tokenizer.padding_side='left'"))
    return mask


def with_tokens(mask: torch.Tensor, ignored: list[OptionError] | None, source: str = "") -> torch.Tensor:
    """Return the mask with all tokens of a row that it hides wholly. Pads can be anywhere. Args: as in `readable_mask`.

    Raises:
        PromptError: with `ignored=None`, if a row holds only pads.
    """
    mask = mask.bool()
    for row in (~mask.any(dim=1)).nonzero()[:, 0].tolist():
        if ignored is None:
            raise PromptError(f"row {row} of the batch holds only pads{source}; leave it out")
        allowed = f"leaves no token in row {row} of the batch{source}, so its pads are read as tokens"
        ignored.append(OptionError("attention_mask", "a mask", allowed, "leave out the row"))
        mask = mask.clone()
        mask[row] = True
    return mask


def _two_dimensional(name: str, given: Any) -> torch.Tensor:
    if not isinstance(given, torch.Tensor):
        raise PromptError(f"`{name}` must be a tensor [rows, width], got {type(given).__name__}")
    if given.ndim != 2:
        advice = f"; add the batch dimension: {name}[None]" if given.ndim == 1 else ""
        raise PromptError(f"`{name}` must have two dimensions, [rows, width], got shape {tuple(given.shape)}{advice}")
    return given


def _infer_mask(ids: torch.Tensor, pad_token_id: int | None, eos_token_ids: Sequence[int]) -> torch.Tensor:
    if pad_token_id is None or pad_token_id in eos_token_ids:
        return torch.ones_like(ids, dtype=torch.bool)
    return ids != pad_token_id


def _read_mask(given: Any, ids: torch.Tensor) -> torch.Tensor:
    mask = _two_dimensional("attention_mask", given)
    if mask.shape != ids.shape:
        shapes = f"{tuple(ids.shape)}, got {tuple(mask.shape)}"
        raise PromptError(f"`attention_mask` must have the shape of `input_ids`, {shapes}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise PromptError("`attention_mask` must hold only 0 for pads and 1 for tokens")
    return mask.bool()


def _misplaced_pads(mask: torch.Tensor) -> str | None:
    """Return which row has pads that are not on its left, or None."""
    for row in (~mask[:, -1]).nonzero()[:, 0].tolist():
        return f"row {row} of the batch is padded on the right"
    for row in (mask[:, :-1] & ~mask[:, 1:]).any(dim=1).nonzero()[:, 0].tolist():
        return f"row {row} of the batch has pads between its tokens"
    return None


def _check_positions(given: torch.Tensor, mask: torch.Tensor) -> None:
    usual = mask.cumsum(dim=1) - 1
    if given.shape[1] != mask.shape[1] or bool(((given.to(mask.device) != usual) & mask).any()):
        raise PromptError("`position_ids` must count a row's real tokens from 0; other positions are not supported")
