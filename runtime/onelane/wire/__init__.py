"""gRPC over HTTP/2, sans-I/O: bytes in, events out. No socket, loop, thread or clock.

`http2` alone imports ngh2, behind a narrow interface of ours; `grpc` is what both sides share; `server` and `client`
are the two ends of a connection.
Source: gRPC over HTTP2 (grpc/doc/PROTOCOL-HTTP2.md), RFC 9113.
"""
