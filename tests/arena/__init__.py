"""The arena on machines of a cluster."""
