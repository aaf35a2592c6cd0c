"""Real apps that are scaled, restarted and killed under load, and the histories of their clients."""
