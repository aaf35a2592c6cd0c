"""What processes know of each other: the control line to the supervisor, the topology, who is a member.

Imports: `core`, `wire`, `telemetry`. Main types: `control.Control` and `membership.Membership`.
"""
