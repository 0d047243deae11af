"""Runs the step. Algorithms never import this room."""
