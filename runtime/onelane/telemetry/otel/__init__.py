"""OpenTelemetry's API inside handlers: its context, its spans and its metrics join ours."""
