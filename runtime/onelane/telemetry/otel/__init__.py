"""OpenTelemetry's API inside handlers: its context, spans and metrics are those of the lane that runs the code.

Imports: OpenTelemetry's API (not its SDK), `core/context`, and the records of `telemetry`. Main types:
`tracing.LaneTracer` and `metrics.Bridge`.
"""
