"""Top-k sampling: each token is drawn from the 50 best."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import unspool
from unspool import functional as F
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

set_seed(42)
outputs = unspool.generate(model, **inputs, do_sample=True, max_new_tokens=20, top_k=50)
for output in outputs:
    print(tokenizer.decode(output, skip_special_tokens=True))

set_seed(42)
again = unspool.generate(model, **inputs, do_sample=True, max_new_tokens=20, top_k=50)
assert torch.equal(outputs, again), "the same seed brings the same text"
start = inputs["input_ids"].shape[1]
with torch.no_grad():
    logits = model(outputs).logits[:, start - 1 : -1]
left = F.top_k(logits, 50)
assert left.gather(2, outputs[:, start:, None]).isfinite().all(), "only what was left has been drawn"
