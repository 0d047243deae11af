"""A draft, and a trained target, in the form that others load."""
