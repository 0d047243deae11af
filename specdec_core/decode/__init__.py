"""Propose and verify: tokens that are the target's own, sooner."""
