"""Options kept in files: a folder holds one for each purpose, loaded by name; transformers reads the same files."""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool import GenerationConfig
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")

GenerationConfig(
    num_beams=4, early_stopping=True, length_penalty=0.8, max_new_tokens=15, pad_token_id=0, eos_token_id=0
).save_pretrained("settings", "translation_generation_config.json")
GenerationConfig(repetition_penalty=1.2, max_new_tokens=15).save_pretrained("settings")

config = GenerationConfig.from_pretrained("settings", "translation_generation_config.json")
output = unspool.generate(model, **inputs, generation_config=config)
print(tokenizer.decode(output[0], skip_special_tokens=True))

theirs = transformers.GenerationConfig.from_pretrained("settings", "translation_generation_config.json")
assert torch.equal(output, model.generate(**inputs, generation_config=theirs))
