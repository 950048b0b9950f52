"""SourceInfo: how a model with an encoder reads its source, and how its output begins.

Knows neither configs of transformers nor tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from unspool.errors import OptionError

SourceKind: TypeAlias = Literal["text", "audio", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a Whisper model stores of its prompt.

    start: the first token. stored: the ids that an older checkpoint stores to follow it, None for a language that is to
    be found out. languages: "<|en|>" --> id; empty for a model of one language. tasks: "transcribe" --> id.
    no_timestamps: the token that asks for none. language, task: as stored, None where they are not.
    """

    start: int
    stored: tuple[int | None, ...] = ()
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps: int | None = None
    language: str | None = None
    task: str | None = None

    def prompt(self, language: str | None = None, task: str | None = None) -> tuple[int | None, ...]:
        """Return the decoder's prompt; None stands where the language has to be found out: see `detect_language`.

        Args:
            language: a code ("de"), a name ("german") or a token ("<|de|>"); None for the stored one, else for any.
            task: "transcribe" or "translate" (into English); None for the stored one, else for "transcribe" where a
                language is known.

        Raises:
            OptionError: the model does not know the language or the task.

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
        if self.no_timestamps is not None and ids[-1] != self.no_timestamps:
            ids.append(self.no_timestamps)
        # A model of one language may store that none is to be named.
        return tuple(ids) if self.languages else tuple(each for each in ids if each is not None)

    def _language_id(self, language: str) -> int:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = language.lower()
        token = name if name in self.languages else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
        if token not in self.languages:
            known = ", ".join(sorted(each.strip("<|>") for each in self.languages)) or "none: it has but one"
            raise OptionError("language", language, f"must be one that the model knows ({known})", "see its card")
        return self.languages[token]

    def _task_id(self, task: str) -> int:
        if task not in self.tasks:
            known = ", ".join(map(repr, self.tasks)) or "none"
            raise OptionError("task", task, f"must be one that the model knows ({known})", "leave it out")
        return self.tasks[task]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a model reads, and how its output begins.

    model: its name. kind: what the source is. input_name: the argument of the encoder that takes it.
    max_length: most tokens of a text; None where the model sets no bound, and for other kinds. vocab_size: of a text.
    shape: of audio features (mel bins, frames) or of an image (channels, height, width), which must be just so; None
    where the model takes several.
    sampling_rate: of audio, in hertz; else None.
    decoder_start_token_id: what every output begins with; None where the model does not say.
    begins_freely: whether a decoder prompt may begin with another token.
    speech: how transcripts begin, for Whisper; else None.
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
