"""State by key: the dicts of `shard.keyed`, and their entries as bytes.

Imports: `core`, `telemetry`. Main types: `keyed.KeyedDicts` (all dicts of one lane), `declaration.Declaration` (what a
service says of one of them) and `entries.KeyedEntry`.
"""
