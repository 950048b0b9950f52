"""Quantized, sharded and offloaded models: the tokens that transformers' own generate gives on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool import LanguageModel, MissingExtra, ModelError
from unspool.loading.load import EMBEDDED
from unspool.runtimes.quantized.info import quantized_linears
from unspool.runtimes.wrap.probe import allowed_distance

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torchao"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao"),
    pytest.mark.usefixtures("unforced_layers"),
]

PROMPTS = [[5, 6, 7, 8], [30, 31]]
NUM_TOKENS = 8


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"pip install 'unspool[{package}]'")


def torchao(kind: str, **options: Any) -> Any:
    from torchao import quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(quantization, kind)(**options))


def int4() -> Any:
    from torchao.quantization.granularity import PerGroup

    return torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(32))


METHODS: dict[str, tuple[Callable[[], Any], str]] = {
    "bitsandbytes fp4": (lambda: BitsAndBytesConfig(load_in_4bit=True), "(14 quantized as Linear4bit)"),
    "bitsandbytes nf4, twice": (
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "(14 quantized as Linear4bit)",
    ),
    "bitsandbytes int8": (
        lambda: BitsAndBytesConfig(load_in_8bit=True),
        "(14 quantized as Linear8bitLt, all rows of a pass with the same outliers)",
    ),
    "bitsandbytes int8, no outliers": (
        lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
        "(14 quantized as Linear8bitLt)",
    ),
    "torchao int8": (lambda: torchao("Int8WeightOnlyConfig"), "(14 quantized as Int8Tensor)"),
    "torchao int8, inputs too": (
        lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
        "(14 quantized as Int8Tensor)",
    ),
    "torchao int4": (int4, "(14 quantized as IntxUnpackedToInt8Tensor)"),
}
"""A quantization_config, and how `info.backend` ends; 14 of 15 linear layers are quantized, the head is not."""

methods = pytest.mark.parametrize("method", [pytest.param(name, marks=needs(name.split()[0])) for name in METHODS])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)
    found = {}
    for name, options in {"whole": {}, "sharded": {"max_shard_size": "40KB"}, "half": {}}.items():
        found[name] = tmp_path_factory.mktemp(name)
        (model.half() if name == "half" else model).save_pretrained(found[name], **options)
        tokenizer.save_pretrained(found[name])
    assert len(list(found["sharded"].glob("*.safetensors"))) > 3
    return found


SEARCHES: list[dict[str, Any]] = [{"num_beams": 1}, {"num_beams": 4, "early_stopping": True}]


def theirs(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """Return what the model's own generate writes, greedily and with beams, prompt by prompt."""
    found = []
    for prompt in PROMPTS:
        for options in SEARCHES:
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, **options)
            found.append(tuple(ids[0, len(prompt) :].tolist()))
    return found


def ours(lm: LanguageModel) -> list[tuple[int, ...]]:
    """Return what we write, one request at a time."""
    return [
        lm.generate(prompt, max_new_tokens=NUM_TOKENS, **options).completions[0].token_ids
        for prompt in PROMPTS
        for options in SEARCHES
    ]


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> Callable[[str], list[tuple[int, ...]]]:
    """What transformers writes with a method, computed once."""

    @cache
    def find(method: str) -> list[tuple[int, ...]]:
        return theirs(AutoModelForCausalLM.from_pretrained(folders["whole"], quantization_config=METHODS[method][0]()))

    return find


@methods
def test_a_quantized_model_gives_what_transformers_gives(
    method: str, folders: dict[str, Path], answers: Callable[[str], list[tuple[int, ...]]]
) -> None:
    config, path = METHODS[method]
    lm = unspool.load(folders["whole"], quantization_config=config())
    assert ", 1 of 15 linear layers packed" in lm.info.backend and lm.info.backend.endswith(path)
    assert not lm.info.batch_invariant
    assert ours(lm) == answers(method)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=needs(name.split()[0])) for name in ("bitsandbytes nf4, twice", "torchao int8")],
)
def test_a_sharded_model_is_quantized_as_a_whole_one(
    method: str, folders: dict[str, Path], answers: Callable[[str], list[tuple[int, ...]]]
) -> None:
    assert ours(unspool.load(folders["sharded"], quantization_config=METHODS[method][0]())) == answers(method)


@methods
def test_a_users_own_quantized_model_stays_as_it_was(
    method: str, folders: dict[str, Path], answers: Callable[[str], list[tuple[int, ...]]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["whole"], quantization_config=METHODS[method][0]())
    assert ours(unspool.load(model)) == answers(method)  # before the model's own first forward
    assert theirs(model) == answers(method)


@needs("bitsandbytes")
@pytest.mark.parametrize(
    "short",
    [
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    ],
)
def test_the_short_forms_are_a_quantization_config(short: dict[str, Any], folders: dict[str, Path]) -> None:
    config = BitsAndBytesConfig(**short)
    model = AutoModelForCausalLM.from_pretrained(folders["whole"], quantization_config=config)
    assert ours(unspool.load(folders["whole"], **short)) == theirs(model)
    plain = unspool.load(folders["whole"], load_in_4bit=False, load_in_8bit=False)
    assert "15 of 15 linear layers packed" in plain.info.backend


@methods
def test_a_model_saved_quantized_is_loaded_as_it_is(
    method: str, folders: dict[str, Path], answers: Callable[[str], list[tuple[int, ...]]], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["whole"], quantization_config=METHODS[method][0]())
    model.save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    lm = unspool.load(tmp_path)
    assert lm.info.backend.endswith(METHODS[method][1])
    assert ours(lm) == answers(method)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=needs(name.split()[0])) for name in ("bitsandbytes fp4", "torchao int8")],
)
def test_stored_float16_is_widened_on_a_cpu_where_weights_are_quantized_too(
    method: str, folders: dict[str, Path]
) -> None:
    config = METHODS[method][0]
    lm = unspool.load(folders["half"], quantization_config=config(), device="cpu")
    assert ", float32, " in lm.info.backend
    options = {"quantization_config": config(), "dtype": torch.float32, "device_map": "cpu"}
    assert ours(lm) == theirs(AutoModelForCausalLM.from_pretrained(folders["half"], **options))


SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@needs("accelerate")
@pytest.mark.parametrize(
    ("layout", "options", "words"),
    [
        ("sharded", {"device_map": "auto"}, "15 of 15 linear layers packed"),
        ("whole", {"device_map": SPREAD}, "the model is spread over devices"),
        ("sharded", {"device_map": "auto", "max_memory": {"cpu": 300_000}}, "the model is spread over devices"),
    ],
    ids=["auto", "by hand", "little memory"],
)
def test_an_offloaded_model_gives_what_transformers_gives(
    layout: str, options: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    lm = unspool.load(folders[layout], **options, offload_folder=tmp_path / "ours")
    assert words in lm.info.backend
    assert ours(lm) == theirs(AutoModelForCausalLM.from_pretrained(folders[layout]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "`load_in_4bit` and `load_in_8bit` are both True"),
        ({"bnb_4bit_quant_type": "nf4"}, "`bnb_4bit_quant_type` is read only together with load_in_4bit=True"),
        ({"load_in_4bit": True, "bnb_4bit_quant": "nf4"}, "`bnb_4bit_quant` is not an option of BitsAndBytesConfig"),
        ({"load_in_2bit": True}, "`load_in_2bit` is not an option of BitsAndBytesConfig; options are load_in_4bit"),
        (
            {"load_in_4bit": True, "quantization_config": {"quant_method": "torchao"}},
            "`load_in_4bit` is short for a `quantization_config`, and there is one",
        ),
        (
            {"quantization_config": {"load_in_4bit": True}, "device": "cpu", "device_map": "auto"},
            "`device` and `device_map` both place quantized weights",
        ),
    ],
)
def test_contradicting_options_are_refused_in_one_line(
    options: dict[str, Any], message: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspool.extras.find_spec", lambda name: name)  # as if every package were installed
    with pytest.raises(ModelError, match=message) as caught:
        unspool.load(folders["whole"], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "absent", "extra"),
    [
        ({"load_in_4bit": True}, "bitsandbytes", "bitsandbytes"),
        ({"load_in_8bit": True}, "accelerate", "bitsandbytes"),
        ({"device_map": "auto"}, "accelerate", "accelerate"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao", "torchao"),
    ],
)
def test_an_absent_package_raises_missing_extra_with_the_pip_line(
    options: dict[str, Any], absent: str, extra: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspool.extras.find_spec", lambda name: None if name == absent else name)
    with pytest.raises(MissingExtra) as caught:
        unspool.load(folders["whole"], **options)
    assert (caught.value.package, caught.value.extra) == (absent, extra)
    assert str(caught.value).endswith(f'which needs {absent}: pip install "unspool[{extra}]"')
    assert isinstance(caught.value, ImportError)


def test_a_folder_stored_quantized_raises_missing_extra_without_the_package(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folders["whole"] / "config.json").read_text()
    stored = '{"quantization_config": {"quant_method": "torchao"},'
    (tmp_path / "config.json").write_text(text.replace("{", stored, 1))
    monkeypatch.setattr("unspool.extras.find_spec", lambda name: None)
    message = r'these weights are quantized by torchao, which needs torchao: pip install "unspool\[torchao\]"'
    with pytest.raises(MissingExtra, match=message):
        unspool.load(tmp_path)


def test_a_loaded_model_is_not_quantized_afterwards() -> None:
    with pytest.raises(ModelError, match="`load_in_4bit` is an option of loading"):
        unspool.load(tiny_model("llama"), load_in_4bit=True)


def test_trials_allow_for_rounding_by_dtype_alone_where_no_layer_is_quantized() -> None:
    model = tiny_model("llama")
    assert quantized_linears(model) == {} and allowed_distance(model) == 1e-3
    assert allowed_distance(tiny_model("llama", dtype=torch.bfloat16)) == 0.05


@needs("bitsandbytes")
@pytest.mark.model
def test_the_embedded_model_tells_its_tale_in_four_bits() -> None:
    lm = unspool.load(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert len(quantized_linears(lm.model)) > 10
    text = lm.generate("Once upon a time", max_new_tokens=30).text
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, quantization_config=config, dtype="float32")
    ids = lm.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
    assert text == lm.tokenizer.decode(expected)
