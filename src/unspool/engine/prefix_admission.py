"""Prefix caching at admission: a prompt reuses cached tokens, or waits for an earlier prompt that computes them."""

from __future__ import annotations

from typing import NamedTuple

from unspool.engine.branches import Branch, CachedSequence
from unspool.engine.conversation import Conversation
from unspool.prefixes import common_prefix

# A pass over 8 tokens takes as long as one over a single token, while the weights stream through memory; each further
# one adds its share (GPT-2 124M: 32 ms up to 8, then 1.1 ms each; a copy of 16 takes 0.16 ms).
_MIN_MATCHED_TOKENS = 8
# Who waits takes part one pass later, and pays from where a pass takes twice as long as over a single token: 30 in
# GPT-2's float32 for one who waits, 15 where two do, 20 in the bfloat16 of larger models.
_MIN_SHARED_TOKENS = 16


class PrefixError(Exception):
    """Beginning a sequence failed; the cause says why.

    Args:
        number: of the request.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"a sequence of request {number} could not begin")
        self.number = number


class _Ahead(NamedTuple):
    """A prompt that is computed in this pass, and whether invariantly."""

    prompt: tuple[int, ...]
    invariant: bool


class PrefixAdmission:
    """The prompts of one pass of one runtime, in the order of their requests.

    Who waits, waits for one ahead of it that takes part in this very pass. So somebody gets on in every pass, nobody
    waits for what has failed or was cancelled, and none who comes later is waited for.
    """

    def __init__(self) -> None:
        # By its first tokens, so that prompts are compared only where something can come of it.
        self._ahead: dict[tuple[int, ...], list[_Ahead]] = {}

    def note(self, cached_seq: CachedSequence, *, invariant: bool) -> None:
        """Note that a part of this strand's prompt is computed in the pass."""
        self._ahead.setdefault(cached_seq.prompt[:_MIN_SHARED_TOKENS], []).append(_Ahead(cached_seq.prompt, invariant))

    def should_wait(
        self, conversation: Conversation, branch: Branch, cached_seq: CachedSequence, *, invariant: bool
    ) -> bool:
        """Return whether a strand had better wait, until what it shares with others of this pass is there.

        One that need not wait, and has fed nothing so far, takes over what is there.

        Raises:
            PrefixError: it could not.
        """
        asks = cached_seq.can_match_prefix and not cached_seq.prefix_checked
        limit = conversation.num_unread(branch, cached_seq) if asks else 0
        if limit < _MIN_MATCHED_TOKENS:
            cached_seq.prefix_checked = True
            return False
        shared = min(self._shared(cached_seq, invariant), limit)
        awaits = shared >= _MIN_SHARED_TOKENS
        least = max(_MIN_MATCHED_TOKENS, shared - _MIN_SHARED_TOKENS + 1) if awaits else _MIN_MATCHED_TOKENS
        try:
            matched = cached_seq.match_prefix(limit, least=least, invariant=invariant)
        except Exception as error:
            raise PrefixError(conversation.number) from error
        cached_seq.prefix_checked = matched or not awaits
        return not cached_seq.prefix_checked

    def _shared(self, cached_seq: CachedSequence, invariant: bool) -> int:
        """Return how many tokens the strand's prompt has in common with one that it could wait for."""
        ahead = self._ahead.get(cached_seq.prompt[:_MIN_SHARED_TOKENS], ())
        usable = (each.prompt for each in ahead if each.invariant or not invariant)
        return max((common_prefix(cached_seq.prompt, prompt) for prompt in usable), default=0)
