"""Algorithm `hydra`: draft heads that read each other's guesses (arXiv 2402.05109)."""
