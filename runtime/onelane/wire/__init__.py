"""gRPC over HTTP/2, sans-I/O: bytes in, events out. Only `driver` has a socket and an event loop.

`http2` is libnghttp2, by way of our own `_nghttp2` or of `ngh2_session`; `framing` is the encoding that both ends
share; `driver` is the asyncio side, `unix_peers` tells the user behind a Unix socket.
Imports: `errors`, `core`. Main types: `server.ServerConnection` and `client.ClientConnection`.
Source: gRPC over HTTP2 (grpc/doc/PROTOCOL-HTTP2.md), RFC 9113.
"""
