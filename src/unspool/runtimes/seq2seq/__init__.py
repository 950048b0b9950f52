"""The backend for models with an encoder: encoder outputs per source, decoder passes over sequences of equal length."""
