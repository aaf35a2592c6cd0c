"""Calls to other servers: channels for generated stubs on our own wire, with retries, hedging and outlier detection.

Imports: `core`, `wire`, `telemetry`. Main types: `channel.NativeChannel` (one server) and `ring_channel.Channel` (all
shards of an app, each call to the owner of its key).
"""
