"""The process that starts, watches, restarts and drains shards, and adds up their reports. Loads no grpcio.

Imports: all rooms below, but only files that load no grpcio. Main types: `supervisor.Supervisor`, of all apps, and
`app.AppSupervisor`, of the shards of one.
"""
