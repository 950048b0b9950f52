"""The backend for models with an encoder: encoder outputs per source, decoder passes over sequences of equal length.

`runtime.py` has the four methods, `model.py` wraps the model, `forward.py` runs passes, and `probe.py` checks them.
"""
