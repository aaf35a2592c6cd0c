"""A service whose calls show what their handler sees."""
