"""SourceInfo: the input of a model's encoder, and the start of its output.

Knows neither transformers' configs nor tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from unspool.errors import OptionError

SourceKind: TypeAlias = Literal["text", "audio", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """The stored decoder prompt of a Whisper model.

    start: the first token. stored: the ids after it that an older checkpoint stores; None in it for a language to be
    detected. languages: "<|en|>" --> id; empty for a model of one language. tasks: "transcribe" --> id.
    no_timestamps: the token that turns timestamps off; None if unknown. Timestamp tokens have the ids above it, and the
    token below it means "no speech". language, task: as stored; None if not stored.
    previous: the token before the text of previous windows; None if unknown. max_initial_timestamp: greatest first
    timestamp, in timestamp tokens from 0; None for no limit. sums_timestamps: True if a timestamp must follow when all
    timestamps together are more probable than every text token. alignment_heads: (layer, head) pairs with
    cross-attention that follows the audio; empty if unknown. frames_per_position: feature frames per position of the
    encoder's output. median_filter_width: of the cross-attention, in positions, odd.
    """

    start: int
    stored: tuple[int | None, ...] = ()
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps: int | None = None
    language: str | None = None
    task: str | None = None
    previous: int | None = None
    max_initial_timestamp: int | None = None
    sums_timestamps: bool = True
    alignment_heads: tuple[tuple[int, int], ...] = ()
    frames_per_position: int = 2
    median_filter_width: int = 7

    def prompt(
        self, language: str | None = None, task: str | None = None, *, timestamps: bool = False
    ) -> tuple[int | None, ...]:
        """Return the decoder's prompt, with None in the place of a language that must be detected.

        Args:
            language: a code ("de"), a name ("german") or a token ("<|de|>"). None for the stored language; if none is
                stored, for any language.
            task: "transcribe" or "translate" (into English). None for the stored task; if none is stored, for
                "transcribe" if a language is given.
            timestamps: True for a prompt after which the model writes timestamps.

        Raises:
            OptionError: if the model does not know the language or the task.

        Source: transformers, `WhisperGenerationMixin._retrieve_init_tokens`.
        """
        language, task = language or self.language, task or self.task
        ids: list[int | None] = [self.start]
        if language is None and task is None:
            ids += self.stored
        if language is not None:
            ids[1:2] = [self._language_id(language)]
        elif self.languages and len(ids) < 2:
            ids.append(None)
        if task is not None:
            ids = [each for each in ids if each is None or each not in self.tasks.values()] + [self._task_id(task)]
        elif language is not None and self.tasks and not set(ids) & set(self.tasks.values()):
            ids.append(self._task_id("transcribe"))
        if timestamps:
            ids = ids[:-1] if ids[-1] == self.no_timestamps else ids
        elif self.no_timestamps is not None and ids[-1] != self.no_timestamps:
            ids.append(self.no_timestamps)
        # A model of one language can store None, and needs no language token.
        return tuple(ids) if self.languages else tuple(each for each in ids if each is not None)

    def _language_id(self, language: str) -> int:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = language.lower()
        token = name if name in self.languages else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
        if token not in self.languages:
            known = ", ".join(sorted(each.strip("<|>") for each in self.languages)) or "none: it has only one"
            allowed = f"must be a language of the model ({known})"
            raise OptionError("language", language, allowed, "see its model card")
        return self.languages[token]

    def _task_id(self, task: str) -> int:
        if task not in self.tasks:
            known = ", ".join(map(repr, self.tasks)) or "none"
            raise OptionError("task", task, f"must be a task of the model ({known})", "leave it out")
        return self.tasks[task]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """The input of a model's encoder, and the start of its output.

    model: its name. kind: text, audio or image. input_name: the encoder's argument for it.
    max_length: most tokens of a text; None for no limit, and for other kinds. vocab_size: of a text; else None.
    shape: required shape of audio features (mel bins, frames) or of an image (channels, height, width); None if the
    model accepts several.
    sampling_rate: of audio, in hertz; else None.
    decoder_start_token_id: the first token of every output; None if the model does not define one.
    begins_freely: True if a decoder prompt can begin with another token.
    speech: the stored prompt of a Whisper model; else None.
    """

    model: str
    kind: SourceKind
    input_name: str
    max_length: int | None = None
    vocab_size: int | None = None
    shape: tuple[int, ...] | None = None
    sampling_rate: int | None = None
    decoder_start_token_id: int | None = None
    begins_freely: bool = False
    speech: Speech | None = None
