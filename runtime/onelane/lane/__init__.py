"""The lane: one call at a time for each key, on one event loop.

Imports: `core`, `wire`, `telemetry`, `state` (an answer waits for what it rests on), `client` (a forward is a call),
`server`. Main types: `lane.Lane` and `forwarder.Forwarder`.
"""
