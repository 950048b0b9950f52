"""What is asked of a model without having it write: which options say something there, and which tokens are scored."""

from __future__ import annotations

from typing import Any, Final

from unspool.config import GenerationConfig
from unspool.errors import OptionError, PromptError
from unspool.planning import Own
from unspool.prompts import read_prompts
from unspool.types import ModelInfo

BEYOND_ONE_TOKEN: Final = (
    "stop_strings",
    "max_time",
    "num_return_sequences",
    "logprobs",
    "echo",
    "length_penalty",
    "early_stopping",
    "lookahead_steps",
    "num_beam_groups",
    "diversity_penalty",
    "force_words",
    "force_words_ids",
    "force_words_ordered",
    "penalty_alpha",
    "best_of",
    "best_of_by",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
)
"""Options of whole outputs, which say nothing about one distribution."""


def check_says_something(config: GenerationConfig, own: Own) -> None:
    """Refuse what has no effect on the next token alone.

    Raises:
        OptionError: such an option was asked for, or a draft model was given.
    """
    asked: dict[str, Any] = {name: getattr(config, name) for name in BEYOND_ONE_TOKEN if name in config.asked}
    if own.assistant is not None:
        asked["assistant_model"] = own.assistant.runtime.info.name
    for name, value in asked.items():
        raise OptionError(name, value, "has no effect on the next token alone", "leave it out")


def read_continuation(given: Any, before: tuple[int, ...], tokenizer: Any, info: ModelInfo) -> tuple[int, ...]:
    """Return the token ids of a continuation that is to be scored behind `before`.

    Args:
        given: a text, which is encoded by itself, or token ids.

    Raises:
        PromptError: there is none, it cannot be read, or the two together are longer than the model holds.
    """
    prompts = read_prompts(given)
    if not prompts.items:
        raise PromptError("the continuation holds no token, so there is nothing to score")
    if not prompts.single:
        raise PromptError("one continuation is wanted, as a text or a list of token ids; several were given")
    tokens = prompts.items[0]
    if isinstance(tokens, str):
        if tokenizer is None:
            raise PromptError("a text to score needs a tokenizer; give `tokenizer=` to load(), or token ids")
        tokens = tuple(tokenizer(tokens, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise PromptError("the continuation holds no token, so there is nothing to score")
    for index, token in enumerate(tokens):
        if not 0 <= token < info.vocab_size:
            raise PromptError(f"token {index} to score is {token}, outside the vocabulary of {info.vocab_size}")
    total = len(before) + len(tokens)
    if info.max_length is not None and total > info.max_length:
        raise PromptError(
            f"prompt and continuation have {total} tokens together and {info.name} holds {info.max_length}"
        )
    return tokens
