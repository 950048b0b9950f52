"""pipeline(): makes a Pipeline from a task and a model.

Owns: finding the model, its tokenizer and its config's options for a task. Does not know: how a task works.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from unspool.errors import ModelError, OptionError
from unspool.pipelines.base import Pipeline
from unspool.pipelines.image_text_to_text import image_text_to_text
from unspool.pipelines.speech_recognition import speech_recognition
from unspool.pipelines.tasks import IMAGES, SPEECH, Task, find_task
from unspool.pipelines.text_generation import TextGenerationPipeline
from unspool.pipelines.text_to_text import TextToTextPipeline

if TYPE_CHECKING:
    import torch

    from unspool.model import LanguageModel

_LOADING: Final = frozenset(
    {"cache_dir", "code_revision", "device_map", "force_download", "local_files_only", "max_batch_tokens",
     "max_cache_tokens", "max_sequences", "pack", "quantization_config", "quantize", "revision", "subfolder", "token",
     "trust_remote_code"}
)  # fmt: skip
"""Arguments of loading; all others are arguments of every call."""

_LIMITS: Final = ("max_cache_tokens", "max_sequences")
"""Arguments of loading for which None means "no limit", not "not given"."""

_EMBEDDED: Final = ("tale", "tale-draft")
_WITHOUT_EFFECT: Final = frozenset({"binary_output", "framework", "use_fast"})
_ELSEWHERE: Final[Mapping[str, str]] = {
    "config": "give options of generation as `generation_config`, or load the model with the config yourself",
    "feature_extractor": "use transformers.pipeline for sound and pictures",
    "image_processor": "use transformers.pipeline for sound and pictures",
    "processor": "give its `tokenizer`",
    "pipeline_class": "derive from a class of unspool.pipelines",
}

# transformers' pipeline prepends a text to the prompts of these models, which write nonsense without it.
_NEED_A_PREFIX: Final = ("XLNetLMHeadModel", "TransfoXLLMHeadModel")


@overload
def pipeline(
    task: Literal["automatic-speech-recognition", "image-text-to-text"],
    model: Any = ...,
    *,
    tokenizer: Any = ...,
    device: int | str | torch.device | None = ...,
    dtype: str | torch.dtype | None = ...,
    **arguments: Any,
) -> Any: ...


@overload
def pipeline(
    task: str | None = ...,
    model: Any = ...,
    *,
    tokenizer: Any = ...,
    device: int | str | torch.device | None = ...,
    dtype: str | torch.dtype | None = ...,
    **arguments: Any,
) -> Pipeline: ...


def pipeline(
    task: str | None = None,
    model: Any = None,
    *,
    tokenizer: Any = None,
    device: int | str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **arguments: Any,
) -> Any:
    """Return a pipeline for a task, as transformers.pipeline does.

    Args:
        task: "text-generation", "text2text-generation", "summarization", "translation" or "translation_xx_to_yy"; None
            for the task of the model's kind. "automatic-speech-recognition" and "image-text-to-text" return
            transformers' own pipelines, with our decoding, for the same arguments.
        model: a name or folder, a loaded transformers model (which stays untouched) or a LanguageModel; None for the
            embedded model.
        tokenizer: a tokenizer, or the name or folder of one. A loaded transformers model needs it.
        device: such as "cpu", "cuda:0", or the number of a GPU, with -1 for the CPU; None for the first GPU if there is
            one.
        dtype: as in `load`; `torch_dtype` is another name for it.
        arguments: for loading (`revision`, `device_map`, `trust_remote_code`, `model_kwargs`, ...), and arguments of
            every call; a call's own arguments override them.

    Raises:
        OptionError: if the task or an argument is unknown, or an argument is out of range.
        ModelError: if the model cannot be loaded, or does not fit the task.
        PromptError: if the model lacks a tokenizer.

    Example:
        generator = unspool.pipeline("text-generation")
        generator("Once upon a time", max_new_tokens=20)[0]["generated_text"]
    """
    if task in (SPEECH, IMAGES):
        given = {"tokenizer": tokenizer, "device": device, "dtype": dtype}
        arguments |= {name: value for name, value in given.items() if value is not None}
        return (speech_recognition if task == SPEECH else image_text_to_text)(model, **arguments)
    wanted = None if task is None else find_task(task)
    loading, given = _sorted(arguments)
    if "torch_dtype" in given:
        other = given.pop("torch_dtype")
        if dtype is not None:
            raise OptionError("torch_dtype", other, "is another name for `dtype`", "leave out one of the two")
        dtype = other
    lm, config = _loaded(model, tokenizer, device=device, dtype=dtype, loading=loading)
    if wanted is None:
        wanted = find_task("text2text-generation" if lm.info.needs_source else "text-generation")
    _check_fit(wanted, lm)
    if isinstance(given.get("assistant_model"), str | os.PathLike):
        given["assistant_model"], _ = _loaded(given["assistant_model"], None, device=device, dtype=dtype, loading={})
    stored = _stored_for(wanted, config)
    prefix = stored.pop("prefix", None) or _prefix_of(config, model)
    kind = TextToTextPipeline if wanted.reads_source else TextGenerationPipeline
    return kind(wanted, lm, stored=stored, prefix=prefix, given=given)


def _sorted(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (arguments of loading, arguments of calls).

    Raises:
        OptionError: if an argument of transformers' pipeline is not supported.
    """
    rest = {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT}
    for name, hint in _ELSEWHERE.items():
        if rest.pop(name, None) is not None:
            raise OptionError(name, type(arguments[name]), "is not an argument of these pipelines", hint)
    loading = dict(rest.pop("model_kwargs", None) or {})
    for name in _LOADING & rest.keys():
        value = rest.pop(name)
        if value is not None or name in _LIMITS:
            loading[name] = value
    return loading, rest


def _loaded(
    model: Any, tokenizer: Any, *, device: Any, dtype: Any, loading: Mapping[str, Any]
) -> tuple[LanguageModel, Any]:
    """Return the loaded model and transformers' config of it, None if that is unknown."""
    from unspool.loading.load import load
    from unspool.model import LanguageModel

    if isinstance(model, LanguageModel):
        requested = {"tokenizer": tokenizer, "device": device, "dtype": dtype, **loading}
        for name, value in requested.items():
            if value is not None and not (name == "tokenizer" and value is model.tokenizer):
                raise OptionError(name, value, "cannot be given with a LanguageModel", "leave it out")
        return model, None
    if model is None or isinstance(model, str | os.PathLike):
        where = _device(device, loading)
        lm = load(model, tokenizer=tokenizer, device=where, dtype=dtype, **loading)
        return lm, _config_of(model, loading)
    if device is not None:
        device = _device(device, loading)
        device = None if device == str(getattr(model, "device", None)) else device  # the model can be there already
    if tokenizer is None:
        raise ModelError("a loaded model needs a tokenizer: give `tokenizer`, or its name or folder")
    lm = load(model, tokenizer=tokenizer, device=device, dtype=dtype, **loading)
    return lm, getattr(model, "config", None)


def _device(device: Any, loading: Mapping[str, Any]) -> Any:
    """Return the model's device, as torch names it; None for the default."""
    if device is None:
        import torch

        return None if "device_map" in loading or not torch.cuda.is_available() else "cuda:0"
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu" if device < 0 else f"cuda:{device}"
    return str(device)


def _config_of(model: str | os.PathLike[str] | None, loading: Mapping[str, Any]) -> Any:
    """Return transformers' config of a model that has just been loaded; None for the embedded models."""
    if model is None or (str(model) in _EMBEDDED and not os.path.isdir(model)):
        return None
    from transformers import AutoConfig

    told = {"cache_dir", "code_revision", "local_files_only", "revision", "subfolder", "token", "trust_remote_code"}
    return AutoConfig.from_pretrained(model, **{name: loading[name] for name in told & loading.keys()})


def _check_fit(task: Task, lm: LanguageModel) -> None:
    """Check that the model fits the task."""
    if task.reads_source == lm.info.needs_source:
        return
    if task.reads_source:
        raise ModelError(
            f"{lm.info.name} is a decoder that continues texts, and {task.name} needs an encoder-decoder; give one, "
            "or use text-generation"
        )
    raise ModelError(f"{lm.info.name} is an encoder-decoder; use text2text-generation")


def _stored_for(task: Task, config: Any) -> dict[str, Any]:
    """Return a config's options for the task, and its prefix.

    transformers 4 reads them for all tasks and transformers 5 for none; here only tasks with an encoder read them.
    """
    stored = getattr(config, "task_specific_params", None)
    if not task.reads_source or not isinstance(stored, Mapping):
        return {}
    return dict(stored.get(task.name) or {})


def _prefix_of(config: Any, model: Any) -> str | None:
    """Return the text that this model needs before every prompt, or None."""
    if (prefix := getattr(config, "prefix", None)) is not None:
        return str(prefix)
    architectures = getattr(config, "architectures", None) or [type(model).__name__]
    if any(name in _NEED_A_PREFIX for name in architectures):
        from transformers import TextGenerationPipeline as TransformersPipeline

        return str(TransformersPipeline.XL_PREFIX)
    return None
