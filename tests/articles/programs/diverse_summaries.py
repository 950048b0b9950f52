"""Diverse beam search on an encoder-decoder: groups of beams that avoid each other, one summary of each group.

transformers dropped this search in version 5; the summaries are compared with those of version 4.48.
"""

import torch

import unspool
from tests.oracle import oracle_model, seq2seq_cases

for recorded in seq2seq_cases("group_beam"):
    model = oracle_model(recorded["model"])
    article = torch.tensor(recorded["input_ids"])
    mask = torch.tensor(recorded["attention_mask"])

    summaries = unspool.generate(model, article, attention_mask=mask, do_sample=False, **recorded["kwargs"])
    print(summaries.tolist())

    assert summaries.tolist() == recorded["expected"]["sequences"]
