"""Which plugins exist, which are allowed, and which one serves a name. Imports no torch."""

# Names one more registry.toml, read last.
ENVIRONMENT_VARIABLE = "SPECDEC_REGISTRY"
