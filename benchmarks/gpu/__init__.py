"""All that a GPU is needed for: builds and checks the native ops on it, and writes one JSON file."""
