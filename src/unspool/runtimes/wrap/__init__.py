"""Wrappers of a user's model, which stays untouched: copies, changes, patches, hooks, and probes."""
