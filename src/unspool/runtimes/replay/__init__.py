"""Tracing: a pass is recorded once as a flat list of calls and replayed without the module tree."""
