"""The limits on what a peer may make one connection hold, on either wire."""

import pytest
from onelane.wire.http2 import DataReceived, Http2, Limits
from onelane.wire.limits import FIRST_CONNECTION_WINDOW

from tests.wire.test_server import REQUEST

WINDOW = 16_000


def test_a_connection_window_smaller_than_that_of_a_new_connection_is_refused() -> None:
    """With libnghttp2 a window of 4,000 bytes let 8,998 through that nobody had acknowledged."""
    assert Limits(connection_window=FIRST_CONNECTION_WINDOW).connection_window == 65_535
    with pytest.raises(ValueError, match="connection_window: at least 65535, not 65534"):
        Limits(connection_window=FIRST_CONNECTION_WINDOW - 1)


def test_the_streams_of_a_client_send_no_more_than_the_window_of_their_connection() -> None:
    limits = Limits(window=WINDOW, wide_window=WINDOW, connection_window=FIRST_CONNECTION_WINDOW)
    client, server = Http2(server=False, limits=Limits()), Http2(server=True, limits=limits)
    unread: dict[int, int] = {}

    def pass_bytes() -> None:
        while (up := client.take()) + (down := server.take()):
            for event in server.receive(up):
                if isinstance(event, DataReceived):
                    unread[event.stream_id] = unread.get(event.stream_id, 0) + len(event.data)
            client.receive(down)

    streams = [client.send_request(REQUEST) for _ in range(8)]
    for stream in streams:
        client.send_data(stream, bytes(2 * WINDOW))
    pass_bytes()
    assert sum(unread.values()) == FIRST_CONNECTION_WINDOW
    for stream in streams[:3]:
        amount = unread.pop(stream)
        server.acknowledge(amount, stream)
        pass_bytes()
    assert WINDOW < sum(unread.values()) <= FIRST_CONNECTION_WINDOW
