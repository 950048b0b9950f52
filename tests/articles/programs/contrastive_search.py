"""Contrastive search: probable, but unlike what stands there already (penalty_alpha=0.6, top_k=4)."""

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer("The king had a daughter", return_tensors="pt")
output = unspool.generate(model, **inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=20)
print(tokenizer.decode(output[0], skip_special_tokens=True))


def by_definition(ids, alpha, k):
    """Return the candidate with the greatest (1 - alpha) x probability - alpha x similarity to any token so far."""
    now = model(ids, output_hidden_states=True)
    probabilities, tokens = now.logits[0, -1].softmax(-1).topk(k)
    scores = []
    for probability, token in zip(probabilities, tokens, strict=True):
        longer = torch.cat([ids, token.view(1, 1)], dim=1)
        states = model(longer, output_hidden_states=True).hidden_states[-1][0]
        likeness = cosine_similarity(states[-1:], states[:-1]).max()
        scores.append((1 - alpha) * probability - alpha * likeness)
    return tokens[torch.stack(scores).argmax()].view(1, 1)


expected = inputs["input_ids"]
with torch.no_grad():
    for _ in range(20):
        expected = torch.cat([expected, by_definition(expected, alpha=0.6, k=4)], dim=1)
assert torch.equal(output, expected)
