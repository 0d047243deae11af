"""The target, seen through what it computes: no weight and no module leaves this room."""
