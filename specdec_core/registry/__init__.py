"""Which plugins exist, which are allowed, and which one serves a name. Imports no torch."""
