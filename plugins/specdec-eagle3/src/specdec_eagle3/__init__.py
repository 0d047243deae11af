"""Algorithm `eagle3`: EAGLE-3 (arXiv 2503.01840) and its 3.1 options."""
