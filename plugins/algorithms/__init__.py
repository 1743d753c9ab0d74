"""Built-in algorithms: one plugin per file."""
