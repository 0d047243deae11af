"""The tensors of the target that a step needs, live or from a cache."""
