"""The contracts of an algorithm, its draft, and how it proposes."""
