"""GenerationConfig: validated generation options of a user, a model's stored config or a request.

Owns: construction, comparison, and the table OPTIONS, which is derived from the class. Does not know: the resolution of
config layers (`unspool.config.layers`) and files (`unspool.config.storage`).
"""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unspool.config.differences import Differences
from unspool.config.foreign import NO_EFFECT, REFUSED, Standing, is_set
from unspool.config.strategies import STRATEGIES, readers_of, unknown_reads
from unspool.errors import OptionError, StrategyError
from unspool.options.fields.options import Options
from unspool.options.kinds import choice
from unspool.options.option import GROUPS, UNSET, Option, option_of

_ELSEWHERE: Final[Mapping[str, str]] = {
    "n": "num_return_sequences",
    "stop": "stop_strings",
    "stop_sequences": "stop_strings",
    "stop_token_ids": "eos_token_id",
    "max_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "beam_size": "num_beams",
    "beam_width": "num_beams",
    "repeat_penalty": "repetition_penalty",
    "random_seed": "seed",
    "logit_bias": "sequence_bias",
}
"""Names of our options in other systems. They are not accepted; an error message suggests our name."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Options):
    """Generation options. Immutable; the constructor checks and normalizes each value.

    An omitted option, or UNSET, is "not given" and reads as its default. None means "off" and overrides lower layers.
    docs/configs.md compares both with `off` and the defaults. Normalization turns lists into tuples, a single token id
    or stop string into a tuple of one, and `sequence_bias` into an immutable mapping.

    Attributes:
        explicit: names of the options that are set, to a value or to None.
        requested: in a resolved config, names of the options that the call or the user's config set to an effective
            value: not off, not the default and not the model's stored value. Empty in other configs.
        stored: in a resolved config, names of the options with the value of the model's stored config. Empty in other
            configs.
        extras: attributes without effect on tokens (`use_cache`, ...), and other attributes of a stored config.

    Raises:
        OptionError: if an option is unknown, refused, of the wrong type or out of range.
    """

    explicit: frozenset[str] = field(init=False, repr=False)
    requested: frozenset[str] = field(init=False, repr=False)
    stored: frozenset[str] = field(init=False, repr=False, compare=False)
    extras: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    if not TYPE_CHECKING:  # type checkers see one typed argument per option

        def __init__(self, **options: Any) -> None:
            values, extras = _sort_out(options, lenient=False)
            _fill(self, values, extras=extras)

    @property
    def given(self) -> frozenset[str]:
        """The old name of `explicit`. Deprecated."""
        warnings.warn("`given` is now `explicit`", DeprecationWarning, stacklevel=2)
        return self.explicit

    @property
    def asked(self) -> frozenset[str]:
        """The old name of `requested`. Deprecated."""
        warnings.warn("`asked` is now `requested`", DeprecationWarning, stacklevel=2)
        return self.requested

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in OPTIONS if name in self.explicit)
        return f"GenerationConfig({shown})"

    def replace(self, **changes: Any) -> GenerationConfig:
        """Return a config with some options changed; UNSET removes an option. All other attributes stay the same.

        Raises:
            OptionError: as in the constructor.
        """
        kept = {name: getattr(self, name) for name in OPTIONS if name not in changes}
        values, extras = _sort_out(changes, lenient=False)
        explicit = (self.explicit - changes.keys()) | values.keys()
        stored = self.stored - changes.keys()
        return build(
            kept | values, extras={**self.extras, **extras}, requested=self.requested, stored=stored, explicit=explicit
        )

    __replace__ = replace

    def diff(self, other: GenerationConfig) -> Differences:
        """Return the differing options: name --> (here, there), UNSET for "not given". The result prints as a table."""
        here, there = self._given_values(), other._given_values()
        pairs = {name: (here.get(name, UNSET), there.get(name, UNSET)) for name in OPTIONS}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        return Differences(differing, {name: row.shown_default for name, row in OPTIONS.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the explicit options as plain JSON values; `from_dict` restores the config."""
        values = self._given_values().items()
        return {name: OPTIONS[name].plain(value) for name, value in values}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """Return the config with these options.

        Raises:
            OptionError: as in the constructor.
        """
        values, extras = _sort_out(options, lenient=False)
        return build(values, extras=extras)

    @classmethod
    def from_stored(cls, attributes: Mapping[str, Any]) -> GenerationConfig:
        """Return the config for a model's stored attributes. Never raises, because no user requested the values.

        None means "not given". Other attributes than options, and invalid values, go to `extras`. An invalid value
        raises if a request reads it; a refused attribute raises if the output depends on it. Token ids outside the
        vocabulary, also negative ones, never raise: see `unspool.config.vocabulary`.
        """
        known = {name: value for name, value in attributes.items() if value is not None}
        values, extras = _sort_out(known, lenient=True)
        return build(values, extras=extras)

    @classmethod
    def from_transformers(cls, config: Any) -> GenerationConfig:
        """Return the config for a transformers GenerationConfig; its None means "not given"."""
        return cls.from_stored({name: value for name, value in vars(config).items() if not _is_private(name)})

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        config_file_name: str | None = None,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> GenerationConfig:
        """Return a config from a folder or the hub. Reads files of this library and of transformers 4 and 5.

        Args:
            name_or_path: a folder, or the name of a hub repository.
            config_file_name: name of the file; None for "generation_config.json".
            subfolder: folder that contains the file, inside the folder or repository; None for the top.
            revision, token, cache_dir, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`;
                ignored for a folder.
            options: options that override the file.

        Raises:
            ModelError: if the file is missing or is not a JSON object.
            OptionError: as in the constructor, for `options`.
        """
        from unspool.config.storage import CONFIG_FILE_NAME, read_config

        hub_options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        stored, off = read_config(name_or_path, config_file_name or CONFIG_FILE_NAME, subfolder, hub_options)
        config = cls.from_stored(stored).replace(**dict.fromkeys(off))
        return config.replace(**options) if options else config

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        config_file_name: str | None = None,
        *,
        push_to_hub: bool = False,
        **hub_options: Any,
    ) -> None:
        """Write the explicit options and the extras to a file that transformers can read.

        Args:
            folder: target folder, created if missing. It can contain several configs with different file names.
            config_file_name: name of the file; None for "generation_config.json".
            push_to_hub: True to upload the file as well.
            hub_options: arguments of `push_to_hub`; `repo_id` defaults to the folder's name.

        Raises:
            ModelError: if `folder` is a file, an extra cannot be written as JSON, or the hub rejects the upload.
            OptionError: if there are `hub_options` and `push_to_hub` is False.
        """
        from unspool.config.storage import CONFIG_FILE_NAME, write_config

        if hub_options and not push_to_hub:
            name, value = next(iter(hub_options.items()))
            raise OptionError(name, value, "is read only together with `push_to_hub`", "set push_to_hub=True")
        path = write_config(self._file_text(), folder, config_file_name or CONFIG_FILE_NAME)
        if push_to_hub:
            self.push_to_hub(hub_options.pop("repo_id", path.parent.name), path.name, **hub_options)

    def push_to_hub(
        self,
        repo_id: str,
        config_file_name: str | None = None,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the config to a model repository of the hub; creates the repository if it is missing.

        Args:
            repo_id: "owner/name", or a name in your own namespace.
            config_file_name: name of the file in the repository; None for "generation_config.json".
            commit_message, commit_description: of the upload; None for a message with the file name.
            private: True to create a private repository; None for the owner's default.
            token: a token, True for the stored token, None for the stored token or anonymous access.
            revision: the branch; None for the main branch.
            create_pr: True to open a pull request instead.

        Returns:
            The URL of the commit.

        Raises:
            ModelError: if the hub is unreachable or rejects the upload.
        """
        from unspool.config.storage import CONFIG_FILE_NAME, upload_config

        commit = {
            "commit_message": commit_message,
            "commit_description": commit_description,
            "revision": revision,
            "create_pr": create_pr,
        }
        name = config_file_name or CONFIG_FILE_NAME
        return upload_config(self._file_text(), repo_id, name, private=private, token=token, commit=commit)

    def _file_text(self) -> str:
        """Return the text of the config's file; equal configs give equal text.

        Raises:
            ModelError: if an extra cannot be written as JSON.
        """
        from unspool.config.storage import to_json

        values = self.to_dict()
        off = [name for name, value in values.items() if value is None and OPTIONS[name].off is None]
        neutral = {name: OPTIONS[name].off for name, value in values.items() if value is None and name not in off}
        return to_json({**self.extras, **values, **neutral}, off)

    def _given_values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS if name in self.explicit}


def _is_private(name: str) -> bool:
    return name.startswith("_") and name not in NO_EFFECT


def _fill(
    config: GenerationConfig,
    values: Mapping[str, Any],
    *,
    extras: Mapping[str, Any],
    requested: frozenset[str] = frozenset(),
    stored: frozenset[str] = frozenset(),
    explicit: frozenset[str] | None = None,
) -> None:
    explicit = frozenset(values) if explicit is None else explicit
    # The class is frozen, and `object.__setattr__` would take several times as long.
    vars(config).update(_DEFAULTS, **values, explicit=explicit, requested=requested, stored=stored, extras=dict(extras))


def build(values: Mapping[str, Any], **rest: Any) -> GenerationConfig:
    """Return a config from values that are already checked."""
    config = object.__new__(GenerationConfig)
    _fill(config, values, **rest)
    return config


def _sort_out(options: Mapping[str, Any], *, lenient: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (checked values, extras). If `lenient`, invalid values go to the extras instead of raising."""
    values: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for name, value in options.items():
        if value is UNSET:
            continue
        try:
            if name in OPTIONS:
                values[name] = OPTIONS[name].check(value)
            else:
                extras[name] = check_foreign(name, value)
        except OptionError:
            if not lenient:
                raise
            extras[name] = value
    return values, extras


def check_foreign(name: str, value: Any) -> Any:
    """Check an attribute that is not an option, and return its value.

    Raises:
        OptionError: if the attribute is unknown, or refused and set.
    """
    if name in NO_EFFECT or (name in REFUSED and not is_set(value)):
        return value
    if name in REFUSED:
        raise OptionError(name, value, REFUSED[name].reason, REFUSED[name].remedy)
    raise OptionError(name, value, "is not an option", _suggestion(str(name)))


def _suggestion(name: str) -> str:
    close = nearest_option(name)
    return f"did you mean `{close}`?" if close else "unspool.config.OPTIONS lists them all"


def nearest_option(name: str) -> str | None:
    """Return the option or attribute with the most similar name; None if all names differ too much."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    close = difflib.get_close_matches(name, [*OPTIONS, *NO_EFFECT, *REFUSED], n=1, cutoff=0.7)
    return close[0] if close else None


def option_status(name: str) -> Standing:
    """Return the handling of an attribute: honored, without effect, refused or unknown."""
    if name in OPTIONS:
        return "honored"
    if name in NO_EFFECT:
        return "no_effect"
    return "refused" if name in REFUSED else "unknown"


def _with_strategies(row: Option) -> Option:
    """Return the row with the names of the strategies that read it; for `strategy`, with the names it accepts."""
    if row.name == "strategy":
        row = replace(row, kind=choice(*STRATEGIES))
    if row.read_by == "all":
        return row
    return replace(row, read_by=readers_of(row.name, sampling=row.read_by == "sampling"))


def _read_table() -> dict[str, Option]:
    rows = [option_of(one.metadata, one.name, str(one.type)) for one in fields(GenerationConfig)]
    found = [_with_strategies(row) for row in rows if row is not None]
    found.sort(key=lambda row: GROUPS.index(row.group))
    for strategy, names in unknown_reads(frozenset(row.name for row in found)).items():
        raise StrategyError(f"the strategy {strategy!r} reads {', '.join(sorted(names))}: no such option")
    return {row.name: row for row in found}


def _signature() -> inspect.Signature:
    kinds = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [inspect.Parameter(name, kinds, default=UNSET, annotation=row.type) for name, row in OPTIONS.items()]
    )


OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(_read_table())
"""Every option by name, in the order of the groups."""

_DEFAULTS: Final = {name: row.default for name, row in OPTIONS.items()}

GenerationConfig.__signature__ = _signature()  # type: ignore[attr-defined]
