"""Built-in reporters: one plugin per file."""
