"""The draft model of speculative decoding: reads `assistant_model`, and checks that its tokens match the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from unspool.adapters import as_runtime, is_runtime
from unspool.errors import OptionError
from unspool.protocols import Runtime

if TYPE_CHECKING:
    from unspool.source_info import SourceInfo

_OPTION = "assistant_model"
_REMEDY = "give a draft model of the same tokenizer, or draft from the prompt with `prompt_lookup_num_tokens`"


class Assistant(NamedTuple):
    """A draft model. tokenizer: its own, or None."""

    runtime: Runtime
    tokenizer: Any


def read_assistant(given: Any) -> Assistant | None:
    """Return the draft model from `assistant_model`: a LanguageModel, a runtime, or a loaded transformers model.

    Raises:
        OptionError: if the object is of another type.
        ModelError: if it is a transformers model that cannot run here.
    """
    if given is None:
        return None
    if hasattr(given, "runtime") and hasattr(given, "tokenizer"):
        return Assistant(as_runtime(given.runtime), given.tokenizer)
    if is_runtime(given):
        return Assistant(as_runtime(given), None)
    if hasattr(given, "generation_config") and hasattr(given, "forward"):
        from unspool.engines import driver_of

        return Assistant(driver_of(given).engine.runtime, None)
    allowed = "must be a LanguageModel, a Runtime, or a loaded transformers model"
    raise OptionError(_OPTION, type(given).__name__, allowed, "load one: assistant_model=unspool.load(...)")


def check_vocabulary(assistant: Assistant, tokenizer: Any, vocab_size: int) -> None:
    """Check that the draft model uses the same token ids as the model.

    If both tokenizers are known, their vocabularies must be equal; the models can pad them to different sizes.
    Otherwise, the vocabulary sizes must be equal.

    Raises:
        OptionError: if they differ.
    """
    name, drafts = assistant.runtime.info.name, assistant.runtime.info.vocab_size
    if assistant.tokenizer is tokenizer and tokenizer is not None:
        return  # equal, even if the models pad it to different sizes
    if not all(hasattr(each, "get_vocab") for each in (assistant.tokenizer, tokenizer)):
        if drafts != vocab_size:
            allowed = f"must have the model's own vocabulary of {vocab_size} tokens, and has {drafts}"
            raise OptionError(_OPTION, name, allowed, _REMEDY)
        return
    if _fingerprint(assistant.tokenizer) == _fingerprint(tokenizer):
        return
    ours, theirs = _vocabulary(tokenizer), _vocabulary(assistant.tokenizer)
    texts = {token: text for text, token in theirs.items()}
    differing = [(token, text) for text, token in ours.items() if texts.get(token) != text]
    token, text = min(differing, default=(0, ""))
    allowed = "must have the model's own tokenizer"
    if text:
        allowed += f": token {token} is {text!r} to the model and {texts.get(token)!r} to the draft model"
    else:
        allowed += f" with {len(ours)} tokens, and has one with {len(theirs)}"
    raise OptionError(_OPTION, name, allowed, _REMEDY)


def check_source(assistant: Assistant, source: SourceInfo | None) -> None:
    """Check that the draft model's encoder, if any, reads the same kind of input as the model's.

    Raises:
        OptionError: if it does not.
    """
    theirs = assistant.runtime.source
    if source is not None and theirs is not None and theirs.kind != source.kind:
        allowed = f"must read {source.kind}, as the model does, and reads {theirs.kind}"
        raise OptionError(_OPTION, assistant.runtime.info.name, allowed, "leave it out")


_FINGERPRINTS: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


def _vocabulary(tokenizer: Any) -> Mapping[str, int]:
    found: Mapping[str, int] = tokenizer.get_vocab()
    return found


def _fingerprint(tokenizer: Any) -> tuple[int, int]:
    """Return (size, hash) of a tokenizer's vocabulary. Cached until tokens are added."""
    known = _FINGERPRINTS.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _FINGERPRINTS[tokenizer] = (len(tokenizer), hash(frozenset(_vocabulary(tokenizer).items())))
    return known
