"""Files to batches: conversations, chat template, loss mask, packing, vocabulary map."""
