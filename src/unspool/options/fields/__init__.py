"""The options themselves, a dataclass for each family, each option declared once."""
