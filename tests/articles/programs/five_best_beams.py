"""All five beams are returned, best first: they differ in little."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

options = {"num_beams": 5, "no_repeat_ngram_size": 2, "num_return_sequences": 5, "early_stopping": True}
outputs = unspool.generate(model, **inputs, max_new_tokens=15, **options)
for number, output in enumerate(outputs):
    print(f"{number}: {tokenizer.decode(output, skip_special_tokens=True)}")

assert torch.equal(outputs, model.generate(**inputs, max_new_tokens=15, **options))
