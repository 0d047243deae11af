"""`specdec plugins new`: a plugin's package, complete and working, for its author to change."""
