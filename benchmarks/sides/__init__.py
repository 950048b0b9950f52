"""The sides of a comparison, one per file, each imported only in its own worker."""
