"""Metrics, spans and log records: recorded by a shard, added up by the supervisor, exported.

A lane records into plain lists and numbers (`stats`, `tracer`, `logs`). Its tick sends them to the supervisor, where
`collector/` adds them up and `sinks/` export them. `otel/` connects OpenTelemetry's API with a lane. Imports: `core`,
`errors` and `config`. Main types: `stats.Stats` and `tracer.Tracer`.
"""
