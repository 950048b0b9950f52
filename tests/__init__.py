"""The tests: folders mirror src/unspool path for path."""
