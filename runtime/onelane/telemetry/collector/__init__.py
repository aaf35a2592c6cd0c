"""The supervisor's end of telemetry: takes the reports of shards, adds up metrics, keeps recent traces, feeds sinks.

Imports: the records of `telemetry`, the `Sink` seam, and `config`. All files but `collector` and `recent_traces` are
pure. Main types: `collector.Collector` and `totals.Totals`.
"""
