"""Option declarations: kind of value, range, default, off value and help text of every option."""
