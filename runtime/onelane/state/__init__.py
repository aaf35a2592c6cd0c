"""State by key: the dicts of `shard.keyed`, their entries as bytes, and the stores of those that are durable.

Imports: `core`, `config`, `plugins`, `telemetry`. Main types: `keyed.KeyedDicts` (all dicts of one lane),
`journal.Journal` (what of each key is in memory and on disk) and `store.Store`.
"""
