"""A draft in the form that others load."""
