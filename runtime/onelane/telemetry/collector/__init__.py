"""What the supervisor does with the reports of its shards. Main type: `collector.Collector`."""
