"""lm-evaluation-harness against the server: its log-likelihoods and `is_greedy` must equal those of its own runner.

`make test-lm-eval` runs this in an environment of its own, with a server of the embedded model.

    python tests/serving/lm_eval_drill.py ADDRESS MODEL_FOLDER
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

TOLERANCE = 1e-4
PROMPTS = ["Once upon a time", "The king", "A fox", "She said", "In the wood", "There was once a poor man"]
ENDS = [" there was a king", " had three sons, and", " ran", " nothing at all"]


def requests(pairs: list[tuple[str, str]]) -> list[Any]:
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def main() -> int:
    """Return the exit code: 1 if a figure differs."""
    address, folder = sys.argv[1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The client sends token ids without a begin-of-sequence token.
    runner = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", add_bos_token=False)
    pairs = [(prompt, end) for prompt in PROMPTS for end in ENDS]
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        best = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        pairs.append((prompt, tokenizer.decode(best)))
    expected = runner.loglikelihood(requests(pairs))
    failed = False
    for batch_size, concurrent in ((1, 1), (8, 1), (1, 8)):
        client = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model="tale",
            tokenizer=folder,
            tokenizer_backend="huggingface",
            batch_size=batch_size,
            num_concurrent=concurrent,
            max_retries=1,
        )
        found = client.loglikelihood(requests(pairs))
        worst = max(abs(ours[0] - theirs[0]) for ours, theirs in zip(found, expected, strict=True))
        wrong = sum(ours[1] != theirs[1] for ours, theirs in zip(found, expected, strict=True))
        print(
            f"batch {batch_size}, {concurrent} at once: {len(pairs)} pairs, {sum(each[1] for each in found)} greedy; "
            f"largest difference {worst:.1e}, is_greedy differs in {wrong}"
        )
        failed = failed or worst > TOLERANCE or wrong > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
