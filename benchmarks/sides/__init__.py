"""The sides of a comparison, one a file, each imported in its own worker alone."""
