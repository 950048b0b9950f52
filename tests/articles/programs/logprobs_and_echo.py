"""generate() as the reference code of Llama has it: ragged lists of token ids in, new ids and log-probabilities out."""

import torch
from transformers import AutoModelForCausalLM

import unspool
from unspool.loading.load import EMBEDDED

lm = unspool.load()


def generate(prompt_tokens, max_gen_len, temperature=0.6, top_p=0.9, logprobs=False, echo=False, seed=None):
    """Return (tokens, log-probabilities or None), a list for each prompt; with echo the prompts stand in front."""
    results = lm.generate(
        prompt_tokens,
        max_new_tokens=max_gen_len,
        temperature=temperature,
        top_p=top_p if temperature > 0 else None,
        echo=echo,
        logprobs=1 if logprobs else None,
        seed=seed,
    )
    before = [result.prompt_token_ids if echo else () for result in results]
    tokens = [[*ids, *result.completions[0].token_ids] for ids, result in zip(before, results, strict=True)]
    if not logprobs:
        return tokens, None
    of_prompts = [result.prompt_logprobs if echo else () for result in results]
    return tokens, [
        [*first, *result.completions[0].logprobs] for first, result in zip(of_prompts, results, strict=True)
    ]


prompts = [lm.tokenizer(text)["input_ids"] for text in ("The king", "Once upon a time there was", "A fox")]
tokens, logprobs = generate(prompts, max_gen_len=12, logprobs=True, echo=True, seed=3)
for row in tokens:
    print(lm.tokenizer.decode(row, skip_special_tokens=True))

model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
for prompt, row, found in zip(prompts, tokens, logprobs, strict=True):
    assert row[: len(prompt)] == prompt
    ids = torch.tensor([row])
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert found[0] is None, "nothing stands before the first token"
    torch.testing.assert_close(torch.tensor(found[1:]), expected, atol=1e-4, rtol=1e-4)
alone, _ = generate(prompts[1:2], max_gen_len=12, temperature=0)
greedy = model.generate(torch.tensor(prompts[1:2]), max_new_tokens=12)
assert alone[0] == greedy[0, len(prompts[1]) :].tolist()
