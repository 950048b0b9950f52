"""Prefix caching at admission: a prompt reuses cached tokens, or waits for an earlier prompt that computes them."""

from __future__ import annotations

from typing import NamedTuple

from unspool.engine.branches import Branch, CachedSequence
from unspool.engine.conversation import Conversation
from unspool.prefixes import common_prefix
from unspool.tuning import MIN_MATCHED_TOKENS, MIN_SHARED_TOKENS


class PrefixError(Exception):
    """The prefix-cache lookup of a sequence raised; the cause is the original error.

    Args:
        number: of the request.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"the prefix-cache lookup of request {number} failed")
        self.number = number


class _Ahead(NamedTuple):
    """A prompt that this pass computes. invariant: True if it is computed batch-invariantly."""

    prompt: tuple[int, ...]
    invariant: bool


class PrefixAdmission:
    """The prompts of one pass of one runtime, in the order of their requests.

    A prompt waits only for an earlier prompt in the same pass. This guarantees progress: failed, cancelled and later
    requests never block it.
    """

    def __init__(self) -> None:
        # By salt and first tokens, so that only prompts with a common beginning are compared.
        self._ahead: dict[tuple[str, tuple[int, ...]], list[_Ahead]] = {}

    def note(self, cached_seq: CachedSequence, *, invariant: bool) -> None:
        """Record that the pass computes a part of this sequence's prompt."""
        self._ahead.setdefault(_beginning(cached_seq), []).append(_Ahead(cached_seq.prompt, invariant))

    def should_wait(
        self, conversation: Conversation, branch: Branch, cached_seq: CachedSequence, *, invariant: bool
    ) -> bool:
        """Return True if a sequence should wait for an earlier prompt of this pass that shares its prefix.

        Otherwise the sequence reuses its longest cached prefix, if it has not been fed yet.

        Raises:
            PrefixError: if the prefix-cache lookup raises.
        """
        asks = cached_seq.can_match_prefix and not cached_seq.prefix_checked
        limit = conversation.open_turn.num_unread(branch, cached_seq) if asks else 0
        if limit < MIN_MATCHED_TOKENS:
            cached_seq.prefix_checked = True
            return False
        shared = min(self._shared(cached_seq, invariant), limit)
        awaits = shared >= MIN_SHARED_TOKENS
        least = max(MIN_MATCHED_TOKENS, shared - MIN_SHARED_TOKENS + 1) if awaits else MIN_MATCHED_TOKENS
        try:
            matched = cached_seq.match_prefix(limit, least=least, invariant=invariant)
        except Exception as error:
            raise PrefixError(conversation.number) from error
        cached_seq.prefix_checked = matched or not awaits
        return not cached_seq.prefix_checked

    def _shared(self, cached_seq: CachedSequence, invariant: bool) -> int:
        """Return the longest prefix, in tokens, that the prompt shares with an earlier prompt of this pass."""
        ahead = self._ahead.get(_beginning(cached_seq), ())
        usable = (each.prompt for each in ahead if each.invariant or not invariant)
        return max((common_prefix(cached_seq.prompt, prompt) for prompt in usable), default=0)


def _beginning(cached_seq: CachedSequence) -> tuple[str, tuple[int, ...]]:
    """Return the salt and the first tokens, which prompts with a common prefix share."""
    return cached_seq.salt, cached_seq.prompt[:MIN_SHARED_TOKENS]
