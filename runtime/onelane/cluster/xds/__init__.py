"""xDS, by which stock clients of gRPC and Envoy follow the placements of a cluster. Pure; what serves it on a port is
`supervisor/xds_server`.

A placement becomes resources, and a stream of the aggregated discovery service is a session: requests in, responses
out. Imports: `core` and `cluster`. Main types: `resources.XdsResources`, `state_of_the_world.StateOfTheWorld` and
`delta.Delta`.
"""
