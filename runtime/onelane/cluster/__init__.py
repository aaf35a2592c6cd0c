"""The relations between processes: the control line to the supervisor, the topology, membership.

Imports: `core`, `wire`, `telemetry`. Main types: `control.Control` and `membership.Membership`.
"""
