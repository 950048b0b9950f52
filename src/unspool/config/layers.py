"""Resolution of config layers: the call's options > the user's config > the model's stored config > defaults.

Owns: the precedence, the choice of the strategy, the set of requested options, and the check that the strategy reads
each of them. Does not know: models, prompts, or how a strategy uses its options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from unspool.config.conflicts import check_conflicts
from unspool.config.foreign import NO_EFFECT, REFUSED, is_set
from unspool.config.generation import OPTIONS, GenerationConfig, build, check_foreign
from unspool.config.strategies import (
    ALWAYS_SAMPLING,
    EITHER,
    NEVER_SAMPLING,
    STRATEGIES,
    choose_strategy,
    has_sampling_twin,
    meets_needs,
    needs,
    selectors,
)
from unspool.config.vocabulary import config_with_any_ids, with_negative_ids
from unspool.errors import OptionError
from unspool.options.grammar_kinds import GRAMMAR_OPTIONS
from unspool.options.option import UNSET, Option
from unspool.options.order import complete_order

DROP_IN_MAX_NEW_TOKENS: Final = 20

STORED: Final = "it is stored in the model's generation_config (generation_config.json)"


def resolve(
    call: Mapping[str, Any],
    user: GenerationConfig | None = None,
    stored: GenerationConfig | None = None,
    *,
    drop_in: bool = False,
    assistant: bool = False,
    custom: str | None = None,
    ignored: list[OptionError] | None = None,
) -> GenerationConfig:
    """Return the resolved config of a request: final values for all options, with `strategy` and `do_sample` decided.

    In the result, an option that the strategy does not read is off. Each off option has its one off value: None, or
    `Option.off` if the option has a default. `processor_order` lists all processors, or is off. At most one of
    `max_new_tokens` and `max_length` is set; neither is set if the call turns the limit off.

    Args:
        call: options of this call; None means "off" and overrides the lower layers.
        user: the user's config; None for no config.
        stored: the model's stored config; None for no config. Its values never count as requested.
        drop_in: True for transformers' rules and defaults instead of the native ones.
        assistant: True if the call has a draft model.
        custom: name of a user-defined strategy. It can read any option, so only values are checked.
        ignored: collects the errors of unread options, which are then off, and of lengths in conflict; token ids can be
            negative. None to raise the first error.

    Raises:
        OptionError: if an option is unknown, out of range, not read by the strategy, or in conflict with another.
    """
    stored = with_negative_ids(stored or GenerationConfig())
    first = GenerationConfig(**call) if ignored is None else config_with_any_ids(call)
    layers = [first, with_negative_ids(user or GenerationConfig(), stored if ignored is None else None), stored]
    return _Resolution(layers, drop_in=drop_in, assistant=assistant, custom=custom, ignored=ignored).finish()


class _Resolution:
    """One resolution. `values` has the merged options, `layer` the index of the layer that set each."""

    def __init__(
        self,
        layers: list[GenerationConfig],
        *,
        drop_in: bool,
        assistant: bool,
        custom: str | None,
        ignored: list[OptionError] | None,
    ) -> None:
        self.layers, self.drop_in, self.assistant, self.custom = layers, drop_in, assistant, custom
        self.ignored = ignored
        self.stored = layers[2]
        self.layer = {name: index for index in (2, 1, 0) for name in layers[index].explicit}
        self.values: dict[str, Any] = {
            name: getattr(layers[self.layer[name]], name) if name in self.layer else self._default(row)
            for name, row in OPTIONS.items()
        }

    def finish(self) -> GenerationConfig:
        self._check_extras()
        self._settle_pair("max_new_tokens", "max_length")
        self._settle_pair("min_new_tokens", "min_length")
        self._settle_grammar()
        requested = frozenset(name for name in OPTIONS if self._is_requested(name))
        self._limit_length()
        strategy, do_sample = self._decide()
        requested = self._without_unread(requested, strategy, do_sample)
        final = {name: self._final(row, strategy, do_sample) for name, row in OPTIONS.items()}
        final["strategy"], final["do_sample"] = strategy, do_sample
        check_conflicts(final, requested, strategy, ignored=self.ignored)
        if "eos_token_id" in self.layer and final["eos_token_id"] is None:
            final["ignore_eos"] = True  # else the model's own end-of-sequence tokens would apply
        if final["processor_order"] is not None:
            final["processor_order"] = complete_order(final["processor_order"])
        extras = {name: value for layer in reversed(self.layers) for name, value in layer.extras.items()}
        stored = frozenset(name for name in self.layer if self._is_stored(name))
        return build(final, extras=extras, requested=requested, stored=stored, explicit=frozenset(self.layer))

    def _default(self, row: Option) -> Any:
        return row.drop_in_default if self.drop_in and row.drop_in_default is not UNSET else row.default

    def _by_user(self, name: str) -> bool:
        """Return True if the call or the user's config sets this option."""
        return self.layer.get(name, 2) < 2

    def _is_on(self, name: str) -> bool:
        return not OPTIONS[name].is_off(self.values[name])

    def _has(self, partner: str) -> bool:
        """Return True if a partner option is on; "assistant_model" stands for a draft model."""
        return self.assistant if partner == "assistant_model" else self._is_on(partner)

    def _is_requested(self, name: str) -> bool:
        value = self.values[name]
        if not self._by_user(name) or not self._is_on(name) or value == self._default(OPTIONS[name]):
            return False
        return name not in self.stored.explicit or value != getattr(self.stored, name)

    def _is_stored(self, name: str) -> bool:
        """Return True if an option has the value of the model's stored config, from any layer."""
        return name in self.stored.explicit and self.values[name] == getattr(self.stored, name)

    def _check_extras(self) -> None:
        """Check all extras of the user's config, which its author requests, and refused ones of the model's config.

        Raises:
            OptionError: if an extra that no higher layer overrides is invalid, refused or, for the user, unknown.
        """
        overridden: set[str] = set(self.layers[0].explicit) | set(self.layers[0].extras)
        for name, value in self.layers[1].extras.items():
            if name in overridden:
                continue
            if name in OPTIONS:
                OPTIONS[name].check(value)
            elif name in REFUSED:
                check_foreign(name, value)
        for name, value in self.layers[1].extras.items():
            # Unknown attributes in the user's file are errors, unless they are a copy of the model's own attributes.
            known = (
                name in overridden or name in OPTIONS or name.startswith("_") or name in NO_EFFECT or name in REFUSED
            )
            if not known and is_set(value) and value != self.stored.extras.get(name):
                check_foreign(name, value)
        overridden |= set(self.layers[1].explicit) | set(self.layers[1].extras)
        for name, value in self.stored.extras.items():
            if name not in overridden and name in REFUSED and REFUSED[name].stored == "raise" and is_set(value):
                reason = (
                    f"is stored in the model's generation_config (generation_config.json) and {REFUSED[name].reason}"
                )
                raise OptionError(name, value, reason, REFUSED[name].remedy)

    def _settle_pair(self, preferred: str, other: str) -> None:
        """Unset one of two options that limit the same quantity. The higher layer wins; in a tie, `preferred` wins."""
        # In transformers even min_new_tokens=0 overrides min_length.
        both = (self.values[name] is not None if self.drop_in else self._is_on(name) for name in (preferred, other))
        if not all(both):
            return
        first, second = self.layer[preferred], self.layer[other]
        if first == second < 2 and not self.drop_in:
            allowed = f"cannot be given together with `{preferred}`"
            raise OptionError(other, self.values[other], allowed, "leave out one of the two")
        self.values[preferred if second < first and not self.drop_in else other] = None

    def _settle_grammar(self) -> None:
        """Turn off all grammar options but one. The highest layer with one wins; two in one layer are an error."""
        found = sorted((self.layer[name], name) for name in GRAMMAR_OPTIONS if name in self.layer and self._is_on(name))
        if not found:
            return
        (first, kept), *others = found
        for layer, name in others:
            if layer == first:
                allowed = f"cannot be given together with `{kept}`"
                raise OptionError(name, self.values[name], allowed, "leave out one of the two")
            self.values[name] = OPTIONS[name].off_value
        if not self._by_user("forced_eos_token_id"):
            self.values["forced_eos_token_id"] = None  # it would end a text that is not complete
        elif self._is_on("forced_eos_token_id"):
            allowed = f"cannot be given together with `{kept}`, because it ends a text that is not complete"
            raise OptionError("forced_eos_token_id", self.values["forced_eos_token_id"], allowed, "leave it out")

    def _limit_length(self) -> None:
        if self.values["max_new_tokens"] is None and self.values["max_length"] is None:
            if self.drop_in:
                self.values["max_new_tokens"] = DROP_IN_MAX_NEW_TOKENS
            elif "max_new_tokens" not in self.layer:
                self.values["max_new_tokens"] = OPTIONS["max_new_tokens"].fallback

    def _decide(self) -> tuple[str, bool]:
        """Return (strategy, do_sample)."""
        named: str | None = self.values["strategy"]
        always_best = self.values["temperature"] == 0
        if self.custom is not None:
            return self.custom, not always_best and self._wants_sampling(None)
        if always_best and named in ALWAYS_SAMPLING:
            named = self._without_draws(named)
        do_sample = False if always_best else self._wants_sampling(named)
        strategy = named or choose_strategy(self.values, do_sample=do_sample, assistant=self.assistant)
        if strategy in NEVER_SAMPLING and do_sample:
            if self._by_user("do_sample"):
                allowed = f"cannot be True with the strategy {strategy}"
                raise OptionError("do_sample", True, allowed, "leave `do_sample` out, or name another strategy")
            do_sample = False
        if named and not meets_needs(strategy, self.values, assistant=self.assistant):
            raise OptionError("strategy", strategy, f"needs {needs(strategy)}", "give it, or leave `strategy` out")
        return strategy, do_sample

    def _without_draws(self, named: str) -> str | None:
        """Return the strategy for temperature=0 in place of a sampling strategy. None lets the other options decide.

        Raises:
            OptionError: if the strategy always samples.
        """
        if named in ("sample", "beam_sample"):
            return None if named == "sample" else "beam"
        allowed = f"must be above 0 with the strategy {named}; all outputs would otherwise be the same"
        raise OptionError("temperature", self.values["temperature"], allowed, "leave it out, or name another strategy")

    def _wants_sampling(self, named: str | None) -> bool:
        explicit: bool | None = self.values["do_sample"] if "do_sample" in self.layer else None
        if named is not None and named not in EITHER:
            wanted = named not in NEVER_SAMPLING
            if wanted and explicit is False and self._by_user("do_sample"):
                allowed = f"cannot be False with the strategy {named}"
                raise OptionError("do_sample", False, allowed, "leave `do_sample` out, or name another strategy")
            return wanted or (explicit is True and self._by_user("do_sample"))
        if self._by_user("do_sample") and explicit is not None:
            return explicit
        if not self.drop_in and any(self._suggests_sampling(row) for row in OPTIONS.values()):
            return True
        return bool(explicit)

    def _suggests_sampling(self, row: Option) -> bool:
        if not row.samples or not self._by_user(row.name) or not self._is_on(row.name):
            return False
        # With penalty_alpha, top_k is the number of candidates of contrastive search.
        return row.name != "top_k" or not self._is_on("penalty_alpha")

    def _reads(self, row: Option, strategy: str, do_sample: bool) -> bool:
        if row.door != "both" and (row.door == "drop_in") is not self.drop_in:
            return False
        if row.read_by == "all" or self.custom is not None:
            return True
        if row.name == "temperature" and self.values["temperature"] == 0:
            return True  # it has already chosen the strategy
        if "sample" in row.read_by and strategy in EITHER and not do_sample:
            return False  # without sampling all outputs would be the same
        return strategy in row.read_by

    def _without_unread(self, requested: frozenset[str], strategy: str, do_sample: bool) -> frozenset[str]:
        """Return the requested options that are read; the others are turned off and collected.

        Raises:
            OptionError: if an option is not read and cannot be ignored.
        """
        read = set(requested)
        for name, row in OPTIONS.items():
            if name not in requested:
                self._check_stored(row, strategy, do_sample)
            elif (error := self._unread(row, strategy, do_sample)) is not None:
                if self.ignored is None or not self._can_be_ignored(row):
                    raise error
                self.ignored.append(error)
                self.values[name] = row.off_value
                read.remove(name)
        return frozenset(read)

    def _unread(self, row: Option, strategy: str, do_sample: bool) -> OptionError | None:
        """Return the error of an option without effect, or None if it is read."""
        value = self.values[row.name]
        if not self._reads(row, strategy, do_sample):
            return OptionError(row.name, value, *self._why_unread(row, strategy, do_sample))
        if row.partners and not any(self._has(partner) for partner in row.partners):
            partners = " or ".join(f"`{partner}`" for partner in row.partners)
            return OptionError(row.name, value, f"is read only together with {partners}", "set it, or leave this out")
        return None

    def _can_be_ignored(self, row: Option) -> bool:
        # transformers refuses `num_return_sequences` too: the result would have fewer rows than the caller expects.
        return row.door in ("both", "drop_in" if self.drop_in else "native") and row.name != "num_return_sequences"

    def _check_stored(self, row: Option, strategy: str, do_sample: bool) -> None:
        """Raise an OptionError if this request reads a stored value that is out of range."""
        if row.name in self.layer or row.name not in self.stored.extras or not self._reads(row, strategy, do_sample):
            return
        value = self.stored.extras[row.name]
        hint = f"{STORED}: override it with `{row.name}={row.off!r}`"
        raise OptionError(row.name, value, row.range, hint)

    def _why_unread(self, row: Option, strategy: str, do_sample: bool) -> tuple[str, str]:
        """Return the two parts of the error message: (the reason, the hint)."""
        out = f"leave `{row.name}` out"
        if row.door == "drop_in" and not self.drop_in:
            return "belongs to the drop-in unspool.generate(model, ...)", "use `logprobs`, or leave it out"
        if row.door == "native" and self.drop_in:
            return "belongs to the native API", f"{out}, or use unspool.load(...).generate"
        allowed = f"is not read by the strategy {strategy}"
        if row.name == "num_return_sequences":
            return allowed, "set `do_sample=True`, or `num_beams` of at least as many, for more than one output"
        if row.samples and self.values["temperature"] == 0:
            return allowed, f"{out}, since `temperature=0` always takes the best token, or set `temperature` above 0"
        draws = row.samples or "sample" in row.read_by
        if draws and strategy in NEVER_SAMPLING and not has_sampling_twin(strategy):
            return allowed, f"{out}: that strategy never samples"
        if draws and not do_sample:
            return allowed, f"set `do_sample=True`, or {out}"
        return allowed, self._how_to_be_read(row, strategy, do_sample, out)

    def _how_to_be_read(self, row: Option, strategy: str, do_sample: bool, out: str) -> str:
        """Return the hint: a change of options that selects a strategy that reads this option."""
        readers = [name for name in STRATEGIES if name in row.read_by]
        if self.values["strategy"] is not None:
            return f"{out}, or name a strategy that reads it: {', '.join(readers)}"
        culprit = next((name for name in selectors(strategy) if self._has(name)), None)
        if culprit and any(meets_needs(name, self.values, assistant=self.assistant) for name in readers):
            return f"leave `{culprit}` out, or {out}"
        greedily = " with `do_sample=False`" if do_sample and readers[0] in NEVER_SAMPLING else ""
        return f"set {needs(readers[0])}{greedily}, or {out}"

    def _final(self, row: Option, strategy: str, do_sample: bool) -> Any:
        if not self._reads(row, strategy, do_sample):
            return row.off_value
        if row.name == "temperature" and self.values["temperature"] == 0:
            return row.off_value
        return row.settle(self.values[row.name])
