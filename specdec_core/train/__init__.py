"""The training loop. It knows batches, engines and checkpoints, and no model."""
