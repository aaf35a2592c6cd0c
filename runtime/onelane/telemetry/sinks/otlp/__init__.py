"""OTLP over HTTP, sent by a process of its own. Main type: `sink.OtlpSink`."""
