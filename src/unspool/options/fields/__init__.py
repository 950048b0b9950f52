"""Declarations of all options, one dataclass per group."""
