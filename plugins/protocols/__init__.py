"""Built-in protocols: one plugin per file."""
