"""The run config: one TOML file, validated, every error at once. Imports no torch."""
