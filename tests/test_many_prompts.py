"""Ten thousand prompts in one call, in a process that has 2 GB of address space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from unspool.loading.load import EMBEDDED

COUNT, NEW_TOKENS = 10_000, 64

PROGRAM = """
import json, resource, sys, time
gigabytes = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (2 * gigabytes, 2 * gigabytes))
import unspool
count, new_tokens, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
lm = unspool.load("tale-draft")
prompts = [[1, 5 + number % 61, 70 + number // 61] for number in range(count)]
started = time.perf_counter()
answers = lm.generate(prompts, max_new_tokens=new_tokens, progress=False)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rows = [[*prompt, *answer.completions[0].token_ids] for prompt, answer in zip(prompts, answers, strict=True)]
with open(path, "w") as file:
    json.dump({"rows": rows, "ends": [answer.completions[0].finish_reason for answer in answers],
               "seconds": seconds, "peak": peak, "sequences": lm.info.soft_max_sequences}, file)
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds memory on Linux alone")
def test_ten_thousand_prompts_end_right_in_two_gigabytes(tmp_path: Path) -> None:
    """Greedy search: each token is the best one, or within rounding of it, by transformers' own forward pass."""
    path = tmp_path / "rows.json"
    arguments = [sys.executable, "-c", PROGRAM, str(COUNT), str(NEW_TOKENS), str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    print(f"{found['seconds']:.0f} s, peak {found['peak'] / 1e6:.0f} MB")
    assert len(found["rows"]) == COUNT and found["peak"] < 2 << 30
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED / "draft", dtype="float32")
    end = model.generation_config.eos_token_id
    for row, reason in zip(found["rows"], found["ends"], strict=True):
        assert (reason == "length" and len(row) == 3 + NEW_TOKENS) or (reason == "eos" and row[-1] == end)
    longest = max(map(len, found["rows"]))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in found["rows"]])
    for first in range(0, COUNT, 100):
        part = ids[first : first + 100]
        with torch.inference_mode():
            logits = model(part).logits[:, 2:-1]
        chosen = logits.gather(-1, part[:, 3:, None])[..., 0]
        lacking = logits.amax(-1) - chosen
        lengths = torch.tensor([len(row) - 3 for row in found["rows"][first : first + 100]])
        counts = torch.arange(longest - 3) < lengths[:, None]
        assert lacking[counts].max() < 1e-3
