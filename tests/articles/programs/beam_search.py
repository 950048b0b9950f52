"""Beam search: five beginnings are kept, and the search ends as soon as five whole texts have been found."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

output = unspool.generate(model, **inputs, max_new_tokens=20, num_beams=5, early_stopping=True)
print(tokenizer.decode(output[0], skip_special_tokens=True))

assert torch.equal(output, model.generate(**inputs, max_new_tokens=20, num_beams=5, early_stopping=True))
