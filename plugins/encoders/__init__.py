"""Built-in encoders: one plugin per file."""
