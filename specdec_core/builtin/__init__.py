"""What the core itself provides, registered the way a plugin is."""
