"""gRPC over HTTP/2, sans-I/O: bytes in, events out. No socket, loop, thread or clock, but in `driver`.

`http2` alone imports ngh2, behind a narrow interface of ours; `framing` is what both ends share; `driver` alone knows
asyncio. Imports: `errors`. Main types: `server.ServerConnection` and `client.ClientConnection`.
Source: gRPC over HTTP2 (grpc/doc/PROTOCOL-HTTP2.md), RFC 9113.
"""
