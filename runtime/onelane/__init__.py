"""onelane: gRPC services on one single-threaded lane per core.

Importing this package starts nothing and loads no grpcio.
"""
