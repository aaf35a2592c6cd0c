"""What a shard counts, and how it is moved out, added up and exported.

A lane appends plain records (`stats`, `spans`, `logs`); `collector/` adds them up in the supervisor; `sinks/` export
them; `otel/` joins the OpenTelemetry API to it. Imports: `core`. Main types: `stats.Stats` and `tracer.Tracer`.
"""
