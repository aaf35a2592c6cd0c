"""Histories of calls, and whether each key's could have come from one copy of its state."""
