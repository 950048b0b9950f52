"""Greedy search: the most probable token at every step, and soon the text repeats itself."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

output = unspool.generate(model, **inputs, max_new_tokens=30)
print(tokenizer.decode(output[0], skip_special_tokens=True))

assert torch.equal(output, model.generate(**inputs, max_new_tokens=30))
