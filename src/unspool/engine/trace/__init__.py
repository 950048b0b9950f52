"""The trace of a request: recording what a strategy tried, and where each number of a row comes from."""
