"""Assisted decoding: a small model writes in advance, the large one reads along; the text is the large one's own."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
assistant = AutoModelForCausalLM.from_pretrained(EMBEDDED / "draft", dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

output = unspool.generate(model, **inputs, assistant_model=assistant, max_new_tokens=30)
print(tokenizer.decode(output[0], skip_special_tokens=True))

assert torch.equal(output, model.generate(**inputs, assistant_model=assistant, max_new_tokens=30))
assert torch.equal(output, model.generate(**inputs, max_new_tokens=30))
