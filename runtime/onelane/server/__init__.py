"""From sockets to calls: listeners, their connections, steering, and what runs a handler. Knows no lane.

Imports: `core`, `wire`, `telemetry`. Main types: `listener.Listener` (the seam) and `call.Call`.
"""
