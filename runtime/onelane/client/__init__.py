"""Calls to other servers: a channel that generated stubs take, on our own wire, with retries and hedging.

Imports: `core`, `wire`, `telemetry`. Main types: `channel.NativeChannel` (one server) and `ring_channel.Channel` (a
ring of them, retries, spans).
"""
