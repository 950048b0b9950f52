"""A model as it stands: which runtime serves it is looked at again whenever a sequence begins.

Hooks, adapters and other patches come and go between calls. Sequences that have begun stay on their runtime.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from unspool.protocols import Runtime
from unspool.runtimes.kv.attention import ATTENTION_NAME
from unspool.runtimes.wrap.model_copy import AttentionNames, attention_names, modules_of, restore_attention, structure
from unspool.runtimes.wrap.patches import find_patch
from unspool.types import Feed, ModelInfo, Rows, Seq

if TYPE_CHECKING:
    from unspool.source_info import SourceInfo


class _State(NamedTuple):
    """How a model stands. patch: see `find_patch`. parts: see `structure`, or `modules_of` for a patched model."""

    patch: str
    parts: tuple[Any, ...]


class CurrentRuntime(Runtime):
    """One runtime for a plain model, and another one while it is patched. Follows the contract of every Runtime.

    Args:
        model: a loaded transformers model.
        own: whether the model is ours; it is then kept alive.
        make: makes a runtime over the model as it stands, given its attention implementations.
    """

    def __init__(self, model: Any, make: Callable[[Any, AttentionNames], Runtime], *, own: bool) -> None:
        self._model: Callable[[], Any] = (lambda: model) if own else weakref.ref(model)
        self._make, self._own = make, own
        self._attention = attention_names(model)
        self._homes: dict[Seq, Runtime] = {}
        self._lengths: dict[Seq, int] = {}
        self.newest = self._make(model, self._attention)
        self._state = _state_of(model)
        self._plain = None if self._state.patch else (self._state, self.newest)

    @property
    def info(self) -> ModelInfo:
        """What the newest runtime says of the model."""
        return self.newest.info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self.newest.info = info

    @property
    def source(self) -> SourceInfo | None:  # type: ignore[override]
        """How the model reads the input of its encoder; None for a decoder."""
        return self.newest.source

    @property
    def has_prefix_caching(self) -> bool:  # type: ignore[override]
        """Whether keys of earlier prompts can serve; not while the model is patched, for its hooks can change."""
        return self.newest.has_prefix_caching

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """Whether the caller's own modules run, which this runtime then holds."""
        return self.newest.in_place

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError, ModelError: as the runtime of the model as it stands.
        """
        opened = {feed.seq for feed in feeds if feed.seq not in self._homes}
        if opened or not feeds:
            self._look()
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
        if home is not None:
            home.release(seq)

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool) -> int:
        """See Runtime.match_prefix."""
        self._look()
        count = self.newest.match_prefix(seq, tokens, least=least, invariant=invariant)
        if count:
            self._homes[seq], self._lengths[seq] = self.newest, count
        return count

    def refresh(self) -> None:
        """Take over a user's weights after they were written through `.data`; any other change is seen by itself."""
        for runtime in {id(each): each for each in (self.newest, *self._homes.values())}.values():
            runtime.refresh()  # type: ignore[attr-defined]

    def check(self) -> None:
        """Assert the invariants of the cache; for tests."""
        self.newest.check()  # type: ignore[attr-defined]

    def _look(self) -> None:
        """See how the model stands now, and choose the runtime that sequences begin on.

        Raises:
            ModelError: no path can run the model as it stands.
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
        """Run feeds of several runtimes. Sequences that begin go first, since they can be taken back exactly."""
        groups: dict[int, list[int]] = {}
        for index in sorted(range(len(feeds)), key=lambda index: feeds[index].seq not in opened):
            groups.setdefault(id(homes[index]), []).append(index)
        done: list[int] = []
        parts: dict[int, Rows] = {}
        try:
            for group in groups.values():
                group.sort()
                rows = homes[group[0]].forward([feeds[index] for index in group])
                parts |= _divided(rows, [feeds[index] for index in group], group)
                done += group
        except BaseException:
            for index in done:
                seq = feeds[index].seq
                if seq in opened:
                    homes[index].release(seq)
                else:
                    homes[index].truncate(seq, self._lengths[seq])
            raise
        return _joined([parts[index] for index in range(len(feeds))])


def _state_of(model: Any) -> _State:
    patch = find_patch(model)
    return _State(patch, modules_of(model) if patch else structure(model))


def _divided(rows: Rows, feeds: Sequence[Feed], indices: Sequence[int]) -> dict[int, Rows]:
    """Return the rows of each feed by its index."""
    found, asked, shown, looks = {}, 0, 0, 0
    for feed, index in zip(feeds, indices, strict=True):
        logits = rows.logits[asked : asked + len(feed.asked)]
        hidden = rows.hidden[shown : shown + len(feed.tokens)] if feed.hidden and rows.hidden is not None else None
        count = len(feed.asked) * len(feed.layers)
        inner = rows.inner[looks : looks + count] if feed.layers and rows.inner is not None else None
        found[index] = Rows(logits, hidden, inner)
        asked, shown, looks = asked + len(feed.asked), shown + (len(feed.tokens) if feed.hidden else 0), looks + count
    return found


def _joined(parts: Sequence[Rows]) -> Rows:
    hidden = [part.hidden for part in parts if part.hidden is not None]
    inner = [part.inner for part in parts if part.inner is not None]
    return Rows(
        torch.cat([part.logits for part in parts]),
        torch.cat(hidden) if hidden else None,
        torch.cat(inner) if inner else None,
    )
