"""A shard's process: its wiring and lifecycle, its services and settings, its siblings, timers and watchdog.

Imports: all rooms below, `lane` the topmost. Main types: `shard.Shard` (what a service is given) and
`lifecycle.ShardLifecycle`.
"""
