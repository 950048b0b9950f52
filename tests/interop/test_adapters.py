"""Adapters of peft and of transformers: the one that is active at a call acts in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

import unspool
from tests.interop.test_patched_models import OPTIONS, PROMPT, assert_as_generate
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]

LAYERS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "bloom": ["query_key_value"], "t5": ["q", "v"]}


def model_of(family: str, **changes: Any) -> Any:
    return tiny_seq2seq(family, **changes) if family == "t5" else tiny_model(family, **changes)


def adapter(family: str) -> Any:
    task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    return peft.LoraConfig(
        r=4,
        lora_alpha=32,
        target_modules=LAYERS[family],
        init_lora_weights=False,
        task_type=task,
        fan_in_fan_out=family == "gpt2",
    )


def adapted(family: str, **changes: Any) -> Any:
    """Return a model of peft with the adapters "x", which is active, and "y"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = peft.get_peft_model(model_of(family, **changes), adapter(family), "x")
        model.add_adapter("y", adapter(family))
    return model.eval()


@pytest.mark.parametrize("family", LAYERS)
def test_the_adapter_that_is_active_acts(family: str) -> None:
    plain, model = assert_as_generate(model_of(family)), adapted(family)
    first = assert_as_generate(model)
    model.set_adapter("y")
    second = assert_as_generate(model)
    assert not first.equal(second) and not first.equal(plain)
    with model.disable_adapter():
        assert assert_as_generate(model).equal(plain)
        assert assert_as_generate(model.get_base_model()).equal(plain)
    assert assert_as_generate(model).equal(second)
    model.set_adapter("x")
    assert assert_as_generate(model.get_base_model()).equal(first)


@pytest.mark.parametrize("family", LAYERS)
def test_an_adapter_acts_at_its_scale_merged_and_unmerged(family: str) -> None:
    model = adapted(family)
    first = assert_as_generate(model)
    with peft.helpers.rescale_adapter_scale(model, 0.1):
        assert not assert_as_generate(model).equal(first)
    model.merge_adapter()
    assert assert_as_generate(model).equal(first)
    model.unmerge_adapter()
    assert_as_generate(model)
    assert assert_as_generate(model.merge_and_unload()).equal(first)


def takes_this_peft() -> bool:
    """Return whether the installed transformers accepts the installed peft for adapters of its own."""
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not takes_this_peft(), reason="transformers needs a later version of peft")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_adapters_of_transformers_itself_act(family: str) -> None:
    model = model_of(family)
    plain = assert_as_generate(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.add_adapter(adapter(family), "x")
        model.add_adapter(adapter(family), "y")
    found = []
    for name in ("x", "y", ["x", "y"]):
        model.set_adapter(name)
        found.append(assert_as_generate(model))
    assert len({tuple(each[0].tolist()) for each in found}) == 3
    model.disable_adapters()
    assert assert_as_generate(model).equal(plain)
    model.enable_adapters()
    assert assert_as_generate(model).equal(found[-1])


def test_a_loaded_model_follows_its_adapters_and_saves_them(tmp_path: Path) -> None:
    model = adapted("llama")
    lm = unspool.load(model)
    for name in ("x", "y", "x"):
        model.set_adapter(name)
        found = lm.generate([5, 6, 7], max_new_tokens=8, eos_token_id=None).completions[0].token_ids
        assert found == tuple(model.generate(input_ids=PROMPT, **OPTIONS)[0, 3:].tolist())
    lm.save_pretrained(tmp_path)
    assert (tmp_path / "y" / "adapter_config.json").exists()


def test_a_pipeline_takes_a_model_of_peft() -> None:
    model, tokenizer = adapted("llama", vocab_size=400), byte_level()
    call: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "return_full_text": False}
    theirs = transformers.pipeline("text-generation", model.get_base_model(), tokenizer=tokenizer)
    assert unspool.pipeline("text-generation", model, tokenizer=tokenizer)("ab", **call) == theirs("ab", **call)


def test_an_adapter_outside_of_the_layers_is_refused_by_name() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    for call in (unspool.load, lambda model: unspool.generate(model, PROMPT)):
        with pytest.raises(unspool.ModelError, match=r"'default' \(PROMPT_TUNING\) adds tokens"):
            call(model)
    with pytest.raises(unspool.ModelError, match="PROMPT_TUNING"):
        model.generate(input_ids=PROMPT, custom_generate=unspool.decoding_method, **OPTIONS)
