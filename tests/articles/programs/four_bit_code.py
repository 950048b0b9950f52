"""Code completion with weights of four bits; it stops where the next function would begin."""

from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import unspool
from unspool.loading.load import EMBEDDED

prompt = "def fibonacci(n):"
lm = unspool.load(EMBEDDED, load_in_4bit=True, bnb_4bit_quant_type="nf4")
result = lm.generate(prompt, max_new_tokens=20, stop_strings=["\ndef "], repetition_penalty=1.1)
print(prompt + result.text)

config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, quantization_config=config, dtype="float32")
ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
options = {"max_new_tokens": 20, "stop_strings": ["\ndef "], "repetition_penalty": 1.1}
theirs = model.generate(ids, tokenizer=lm.tokenizer, **options)[0, ids.shape[1] :]
assert list(result.completions[0].token_ids) == theirs.tolist()
