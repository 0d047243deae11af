"""Backbone `causal-lm`: any Hugging Face decoder-only text model."""
