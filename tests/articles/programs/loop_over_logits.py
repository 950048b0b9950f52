"""The loop written out: run the model, look at the last row of logits, choose, append; first greedy, then sampled."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unspool import functional as F
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
prompt = tokenizer("The king had a daughter", return_tensors="pt")["input_ids"]


def write(choose, steps=15):
    ids = prompt
    with torch.no_grad():
        for _ in range(steps):
            logits = model(ids).logits[:, -1]
            ids = torch.cat([ids, choose(logits)[:, None]], dim=1)
    return ids


greedy = write(F.greedy)
print(tokenizer.decode(greedy[0], skip_special_tokens=True))

torch.manual_seed(7)
sampled = write(lambda logits: F.sample(F.top_p(F.top_k(F.temperature(logits, 0.8), 50), 0.92)))
print(tokenizer.decode(sampled[0], skip_special_tokens=True))

assert torch.equal(greedy, model.generate(prompt, max_new_tokens=15))
torch.manual_seed(7)
theirs = model.generate(prompt, max_new_tokens=15, do_sample=True, temperature=0.8, top_k=50, top_p=0.92)
assert torch.equal(sampled, theirs)
