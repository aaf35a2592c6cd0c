"""A shard's process: its services and settings, its life, its siblings, timers and watchdog.

Imports: all rooms below, `lane` the topmost. Main types: `shard.Shard` (what a service is given) and `lifecycle.Life`.
"""
