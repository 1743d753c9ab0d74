"""All that a GPU is needed for: builds, checks and times the native ops on it, and writes one JSON file."""
