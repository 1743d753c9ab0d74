"""Built-in metrics: one plugin per file."""
