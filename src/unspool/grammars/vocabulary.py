"""The byte form of a tokenizer's vocabulary, as llguidance reads it, kept per tokenizer.

Owns: the check that a tokenizer has a byte form. Does not know: grammars.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from copy import copy
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from llguidance import LLTokenizer

from unspool.errors import OptionError

if TYPE_CHECKING:
    from unspool.grammars.compiled import CompiledGrammar

_LOCK: Final = threading.Lock()
_VOCABULARIES: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


class Vocabulary:
    """A tokenizer as llguidance reads it, and the grammars that were compiled for it.

    Args:
        tokens: llguidance's tokenizer.
        version: number of tokens in the tokenizer at this time; a tokenizer can grow.

    Attributes:
        compiled: the most recently used grammars, the newest last.
    """

    def __init__(self, tokens: LLTokenizer, version: int) -> None:
        self.tokens, self.version = tokens, version
        self.compiled: OrderedDict[tuple[str, Any], CompiledGrammar] = OrderedDict()


def vocabulary_of(tokenizer: Any, vocab_size: int, *, option: str, given: Any) -> Vocabulary:
    """Return the vocabulary of a tokenizer; it is built at the first use, and kept as long as the tokenizer lives.

    Args:
        tokenizer: of transformers, or of the tokenizers library.
        vocab_size: number of token ids of the model.
        option, given: named in errors.

    Raises:
        OptionError: if the tokenizer lacks a byte form, or is missing.
    """
    if tokenizer is None:
        hint = "give `tokenizer=` to load(), or in the drop-in the model's own as `tokenizer=`"
        raise OptionError(option, given, "needs a tokenizer", hint)
    library = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(library, "to_str") or not hasattr(library, "get_vocab_size"):
        raise _refusal(tokenizer, option, given, "it is not a fast tokenizer")
    size = max(vocab_size, library.get_vocab_size(with_added_tokens=True))
    with _LOCK:
        known = _VOCABULARIES.get(tokenizer)
        if known is None or known.version != size:
            known = Vocabulary(_read(tokenizer, library, size, option, given), size)
            _VOCABULARIES[tokenizer] = known
    return known


def _read(tokenizer: Any, library: Any, size: int, option: str, given: Any) -> LLTokenizer:
    plain = copy(library)
    plain.no_padding()
    plain.no_truncation()
    eos = getattr(tokenizer, "eos_token_id", None)
    try:
        # Masks never contain this token as text; the request's own end-of-sequence tokens are added to them.
        return LLTokenizer(plain.to_str(), n_vocab=size, eos_token=eos if isinstance(eos, int) else 0)
    except Exception as error:
        raise _refusal(tokenizer, option, given, str(error).splitlines()[0]) from None


def _refusal(tokenizer: Any, option: str, given: Any, reason: str) -> OptionError:
    allowed = f"is not possible with the tokenizer {type(tokenizer).__name__}, which lacks a byte form ({reason})"
    hint = "use a model with a byte-level or byte-fallback tokenizer, such as those of GPT-2, Llama and Qwen"
    return OptionError(option, given, allowed, hint)
