"""Export by OTLP over HTTP or gRPC: the sink queues batches in the supervisor, a process of its own encodes and sends.

Imports: the records of `telemetry`, and `core`; only the exporter process (`exporter`, `encode`) loads protobuf, grpcio
and OpenTelemetry's SDK. Main types: `sink.OtlpSink` and `queue.ExportQueue`.
"""
