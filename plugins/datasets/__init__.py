"""Built-in data sets: one plugin per file."""
