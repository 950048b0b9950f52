"""Two cures for repetition: no pair of tokens may come twice, or what has been said counts for less."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

cures = (
    {"num_beams": 5, "no_repeat_ngram_size": 2, "early_stopping": True},
    {"repetition_penalty": 1.3},
)
for cure in cures:
    output = unspool.generate(model, **inputs, max_new_tokens=20, **cure)
    print(tokenizer.decode(output[0], skip_special_tokens=True))

    assert torch.equal(output, model.generate(**inputs, max_new_tokens=20, **cure))
