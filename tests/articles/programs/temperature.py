"""Temperature: the same seed, sharper and flatter; each token is the draw that the definition makes."""

import torch
from transformers import AutoModelForCausalLM

import unspool
from unspool import functional as F
from unspool.loading.load import EMBEDDED

lm = unspool.load()
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")

for temperature in (0.3, 0.7, 1.5):
    result = lm.generate("The king had a daughter", temperature=temperature, seed=42, max_new_tokens=20)
    print(f"{temperature}: {result.text}")

    ids = torch.tensor([[*result.prompt_token_ids, *result.completions[0].token_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0]
    for position in range(len(result.prompt_token_ids), ids.shape[1]):
        flattened = F.temperature(logits[position - 1], temperature)
        assert F.sample(flattened, seed=42, position=position, prompt=result.prompt_token_ids) == ids[0, position]
