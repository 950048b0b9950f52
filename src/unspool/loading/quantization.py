"""Loading quantized and offloaded weights, and quantizing weights after loading.

Owns: the short form `load_in_4bit=True`, required packages, the device and compute dtype of such weights, and the
checks of `quantize`. Does not know: how weights are quantized, or how a quantized layer computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from unspool.errors import ModelError, OptionError
from unspool.extras import EXTRAS, require_extra

_SHORT: Final = ("load_in_4bit", "load_in_8bit")
_QUANTIZE: Final = ("int8", "int4")
_HUB_OPTIONS: Final = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")


class Loading(NamedTuple):
    """How to load: arguments of `from_pretrained`, and the device to move the model to afterwards, or None."""

    options: dict[str, Any]
    dtype: Any
    device: Any


def check_quantize(quantize: Any, device: Any) -> None:
    """Check `quantize` before anything is loaded.

    Raises:
        OptionError: if `quantize` is unknown, or the device is not the CPU.
    """
    if quantize is None:
        return
    if quantize not in _QUANTIZE:
        allowed = "must be 'int8', 'int4' or None"
        raise OptionError("quantize", quantize, allowed, "leave it out for weights as they are stored")
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise _not_on_cpu(quantize, f"`device` is {str(device)!r}")


def _not_on_cpu(quantize: str, place: str) -> OptionError:
    hint = "use load_in_4bit=True, load_in_8bit=True or a quantization_config there"
    return OptionError("quantize", quantize, f"is for models on a CPU, and {place}", hint)


def quantize_weights(model: Any, quantize: Literal["int8", "int4"]) -> None:
    """Quantize the linear layers of our own model, in place.

    Raises:
        OptionError: if a weight is not on the CPU.
        ModelError: if it lacks linear layers.
    """
    from unspool.runtimes.quantized.quantize import quantize_linears
    from unspool.runtimes.wrap.model_copy import is_dispatched

    if is_dispatched(model):
        raise _not_on_cpu(quantize, "this one is spread over devices")
    if places := {parameter.device.type for parameter in model.parameters()} - {"cpu"}:
        raise _not_on_cpu(quantize, f"this one is on {', '.join(sorted(places))}")
    if not quantize_linears(model, quantize):
        raise ModelError(f"{type(model).__name__} needs linear layers to be quantized: leave out `quantize`")


def prepare(source: str, options: Mapping[str, Any], *, dtype: Any, device: Any, quantize: Any = None) -> Loading:
    """Return how to load a model. Without quantization and `device_map` the arguments stay unchanged.

    A quantized model cannot be moved or converted afterwards, so its device and dtype are decided here.

    Args:
        source: a folder or a hub id.
        options: of `unspool.load`, for `from_pretrained`.
        dtype, device: as requested; None for neither.
        quantize: as checked by `check_quantize`.

    Raises:
        MissingExtra: if a package is absent.
        ModelError: if options contradict each other.
        OptionError: if `quantize` is given and the weights are quantized otherwise, or do not go to the CPU.
    """
    passed = _unfolded(options)
    if quantize is not None and not _goes_to_cpu(passed.get("device_map") or "cpu"):
        raise _not_on_cpu(quantize, f"`device_map` is {passed['device_map']!r}")
    if passed.get("device_map") is not None:
        require_extra("accelerate", "`device_map` spreads weights")
    stored = _stored_config(source, passed)
    method = _method(passed.get("quantization_config")) or _method(stored.get("quantization_config"))
    if method is None:
        return Loading(passed, dtype, device)
    if quantize is not None:
        requested = next((name for name in ("quantization_config", *_SHORT) if options.get(name)), None)
        found = f"`{requested}` quantizes them as well" if requested else f"these are stored quantized by {method}"
        raise OptionError(
            "quantize",
            quantize,
            f"is for plain weights, and {found}",
            "leave out one of the two" if requested else "leave it out",
        )
    if method in EXTRAS:  # for other methods transformers names the missing packages
        require_extra(method, f"these weights are quantized by {method}")
    if device is not None:
        if passed.get("device_map") is not None:
            raise ModelError("`device` and `device_map` both place quantized weights: leave out one of the two")
        require_extra("accelerate", "`device` puts quantized weights")
        passed["device_map"] = {"": str(device)}
    was_quantized = stored.get("quantization_config") is not None
    if dtype is None and _stored_dtype(stored) == "float16" and _goes_to_cpu(passed.get("device_map")):
        # torchao's stored weights compute in the dtype that they were stored for.
        dtype = None if was_quantized and method == "torchao" else torch.float32
    return Loading(passed, dtype, None)


def _unfolded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the short forms of a BitsAndBytesConfig replaced by a config."""
    known = inspect.signature(BitsAndBytesConfig.__init__).parameters
    short = {name: value for name, value in options.items() if name.startswith(("load_in_", "bnb_4bit_", "llm_int8_"))}
    passed = {name: value for name, value in options.items() if name not in short}
    if unknown := sorted(short.keys() - known.keys()):
        raise ModelError(f"`{unknown[0]}` is not an option of BitsAndBytesConfig; options are {', '.join(_SHORT)}")
    requested = [name for name in _SHORT if short.get(name)]
    details = sorted(short.keys() - set(_SHORT))
    if not requested:
        if details:
            raise ModelError(f"`{details[0]}` is read only together with load_in_4bit=True or load_in_8bit=True")
        return passed
    if len(requested) > 1:
        raise ModelError("`load_in_4bit` and `load_in_8bit` are both True: leave out one of the two")
    if passed.get("quantization_config") is not None:
        raise ModelError(
            f"`{requested[0]}` is short for a `quantization_config`, and there is one: leave out one of the two"
        )
    require_extra("bitsandbytes", f"`{requested[0]}` quantizes with bitsandbytes")
    return {**passed, "quantization_config": BitsAndBytesConfig(**short)}  # type: ignore[no-untyped-call]


def _stored_config(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json, or an empty dict if it cannot be read: loading then raises with the reason."""
    passed = {name: options[name] for name in _HUB_OPTIONS if name in options}
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source, **passed)
    except Exception:  # names, files and the network can raise anything
        return {}
    return stored


def _method(config: Any) -> str | None:
    """Return the name of a quantization method, or None. config: a dict or an object of transformers."""
    if config is None:
        return None
    get = config.get if isinstance(config, Mapping) else lambda name, default=None: getattr(config, name, default)
    if get("load_in_4bit") or get("load_in_8bit"):
        return "bitsandbytes"
    method = get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def _stored_dtype(stored: Mapping[str, Any]) -> str | None:
    """Return the name of the floating-point dtype in a config.json of transformers 4 or 5."""
    text = stored.get("text_config") or {}
    found = stored.get("dtype") or stored.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return None if found is None else str(found).removeprefix("torch.")


def _goes_to_cpu(device_map: Any) -> bool:
    """Return whether all weights go to the CPU. None is transformers' choice: an accelerator if there is one."""
    if isinstance(device_map, Mapping):
        return {str(place) for place in device_map.values()} <= {"cpu", "disk"}
    accelerated = torch.accelerator.is_available()
    return str(device_map) == "cpu" or not accelerated
