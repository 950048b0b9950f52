"""A pipeline: from text to texts, two for one prompt, and many prompts in batches of eight."""

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from unspool import pipeline
from unspool.loading.load import EMBEDDED

generator = pipeline("text-generation", model=str(EMBEDDED))
two = generator("The king had a daughter", max_new_tokens=12, num_return_sequences=2)  # a pipeline samples, unless told
for each in two:
    print(each["generated_text"])

speakers = ("king", "queen", "fox", "wolf", "cat", "old woman", "tailor", "bear", "hare")
prompts = [f"The {speaker} said" for speaker in speakers]
many = generator(prompts, batch_size=8, max_new_tokens=8, do_sample=False)
for (each,) in many:
    print(each["generated_text"])

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
tokenizer.pad_token_id = model.config.pad_token_id
theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
assert many == theirs(prompts, batch_size=8, max_new_tokens=8, do_sample=False)
assert [each.keys() for each in two] == [{"generated_text"}] * 2
assert all(each["generated_text"].startswith("The king had a daughter") for each in two)
