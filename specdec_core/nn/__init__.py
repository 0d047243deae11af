"""Building blocks that any draft may use; each fast path has a plain twin."""
