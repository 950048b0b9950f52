"""Tokenization and text: token ids to text and back, stop strings, chat templates."""
