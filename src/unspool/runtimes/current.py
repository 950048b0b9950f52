"""A runtime for a model that can change: the backend is chosen again whenever a sequence begins.

Hooks, adapters and other patches can come and go between calls. Each sequence stays on the runtime that it began on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unspool.protocols import Runtime
from unspool.runtimes.generic.row_buffer import join_rows, split_rows
from unspool.runtimes.kv.attention import ATTENTION_NAME
from unspool.runtimes.wrap.model_copy import AttentionNames, attention_names, modules_of, restore_attention, structure
from unspool.runtimes.wrap.patches import find_patch
from unspool.types import Feed, ModelInfo, Rows, Seq

if TYPE_CHECKING:
    from unspool.source_info import SourceInfo


class _State(NamedTuple):
    """The state of a model. patch: see `find_patch`. parts: see `structure`, or `modules_of` for a patched model."""

    patch: str
    parts: tuple[Any, ...]


class CurrentRuntime(Runtime):
    """One runtime for the plain model, and another one for the patched model. Follows the contract of every Runtime.

    Args:
        model: a loaded transformers model.
        owns_model: True if the model is ours; it is then kept alive.
        make: makes a runtime for the current state of the model, given its attention implementations.

    Attributes:
        newest: the runtime that new sequences begin on.
    """

    def __init__(self, model: Any, make: Callable[[Any, AttentionNames], Runtime], *, owns_model: bool) -> None:
        self._model: Callable[[], Any] = (lambda: model) if owns_model else weakref.ref(model)
        self._make, self._own = make, owns_model
        self._attention = attention_names(model)
        self._homes: dict[Seq, Runtime] = {}
        self._lengths: dict[Seq, int] = {}
        self._looked_for: set[Seq] = set()
        self.newest = self._make(model, self._attention)
        self._state = _state_of(model)
        self._plain = None if self._state.patch else (self._state, self.newest)

    @property
    def info(self) -> ModelInfo:
        """The info of the newest runtime."""
        return self.newest.info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self.newest.info = info

    @property
    def source(self) -> SourceInfo | None:  # type: ignore[override]
        """The input format of the encoder; None for a decoder."""
        return self.newest.source

    @property
    def has_prefix_caching(self) -> bool:  # type: ignore[override]
        """True if keys of earlier prompts can be used again; False for a patched model, because hooks can change."""
        return self.newest.has_prefix_caching

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True if the caller's own modules run, which this runtime then holds."""
        return self.newest.in_place

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError, ModelError: as the newest runtime.
        """
        opened = {feed.seq for feed in feeds if feed.seq not in self._homes}
        # Right before a pass, the lookup of prefixes has checked the model for new sequences.
        if not feeds or not opened <= self._looked_for:
            self._look()
        self._looked_for.clear()
        homes = [self._homes.get(feed.seq, self.newest) for feed in feeds]
        if len(set(map(id, homes))) <= 1:
            rows = (homes[0] if homes else self.newest).forward(feeds)
        else:
            rows = self._forward_apart(feeds, homes, opened)
        for feed, home in zip(feeds, homes, strict=True):
            self._homes[feed.seq] = home
            self._lengths[feed.seq] = self._lengths.get(feed.seq, 0) + len(feed.tokens)
        return rows

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork."""
        self._homes[seq].fork(seq, child)
        self._homes[child], self._lengths[child] = self._homes[seq], self._lengths[seq]

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        self._lengths[seq] = self._homes[seq].truncate(seq, keep)
        return self._lengths[seq]

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        home = self._homes.pop(seq, None)
        self._lengths.pop(seq, None)
        self._looked_for.discard(seq)
        if home is not None:
            home.release(seq)

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """See Runtime.match_prefix."""
        self._look()
        count = self.newest.match_prefix(seq, tokens, least=least, invariant=invariant, salt=salt)
        if count:
            self._homes[seq], self._lengths[seq] = self.newest, count
        else:
            self._looked_for.add(seq)
        return count

    def refresh(self) -> None:
        """Apply a user's weights after they were written through `.data`; other changes are found automatically."""
        for runtime in {id(each): each for each in (self.newest, *self._homes.values())}.values():
            runtime.refresh()  # type: ignore[attr-defined]

    def check(self) -> None:
        """Assert the invariants of the cache; for tests."""
        self.newest.check()  # type: ignore[attr-defined]

    def _look(self) -> None:
        """Check the state of the model, and choose the runtime for new sequences.

        Raises:
            ModelError: if no runtime can run the model in its current state.
        """
        model = self._model()
        if model is None or (state := _state_of(model)) == self._state:
            return
        if self._plain is not None and self._plain[0] == state:
            self._state, self.newest = self._plain
            return
        if self._own:
            self._attention = [
                (config, self._original_attention(config) if name == ATTENTION_NAME else name)
                for config, name in attention_names(model)
            ]
            if not state.patch:
                restore_attention(self._attention)
        self.newest = self._make(model, self._attention if self._own else attention_names(model))
        self._state = _state_of(model)
        if not state.patch:
            self._plain = self._state, self.newest

    def _original_attention(self, config: Any) -> str | None:
        return next((name for known, name in self._attention if known is config), ATTENTION_NAME)

    def _forward_apart(self, feeds: Sequence[Feed], homes: Sequence[Runtime], opened: set[Seq]) -> Rows:
        """Run feeds of several runtimes. New sequences go first, because they can be undone exactly."""
        groups: dict[int, list[int]] = {}
        for index in sorted(range(len(feeds)), key=lambda index: feeds[index].seq not in opened):
            groups.setdefault(id(homes[index]), []).append(index)
        done: list[int] = []
        parts: dict[int, Rows] = {}
        try:
            for group in groups.values():
                group.sort()
                rows = homes[group[0]].forward([feeds[index] for index in group])
                parts |= zip(group, split_rows(rows, [feeds[index] for index in group]), strict=True)
                done += group
        except BaseException:
            for index in done:
                seq = feeds[index].seq
                if seq in opened:
                    homes[index].release(seq)
                else:
                    homes[index].truncate(seq, self._lengths[seq])
            raise
        return join_rows([parts[index] for index in range(len(feeds))])


def _state_of(model: Any) -> _State:
    patch = find_patch(model)
    return _State(patch, modules_of(model) if patch else structure(model))
