"""Blocking work on worker threads, one for each resource. Main types: `offload.Offload` and `thread.WorkerThread`."""
