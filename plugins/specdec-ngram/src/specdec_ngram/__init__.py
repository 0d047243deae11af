"""Algorithm `ngram`: prompt-lookup drafting, without weights or training."""
