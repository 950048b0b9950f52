"""The options: one declaration each, with its kind of value, range, default, off value and help text."""
