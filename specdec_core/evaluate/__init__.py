"""Acceptance and speed, measured by decoding, never quoted without conditions."""
