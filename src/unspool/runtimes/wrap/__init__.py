"""A user's model, untouched: copies of its module tree, changes and patches, hooks, agreement of logits."""
