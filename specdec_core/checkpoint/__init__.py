"""A run's state on disk: complete or absent, never half-written."""
