"""Algorithm `medusa`: heads beside the target's own, each for a token further ahead (arXiv 2401.10774)."""
