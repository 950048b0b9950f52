"""Inputs of a request: prompts, encoder sources and decoder prompts, read from text, ids, audio and images."""
