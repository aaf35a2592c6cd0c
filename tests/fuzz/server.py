"""The fuzz target: any bytes of a client, and what a listener does with what they amount to. Nothing may raise.

The first byte of an input chooses the size of the pieces. `python -m tests.fuzz.server -runs=20000 tests/fuzz/corpus`
"""

import sys

import atheris

with atheris.instrument_imports(include=["onelane.wire"]):
    from onelane.wire import framing
    from onelane.wire.framing import BadWire
    from onelane.wire.http2 import Limits
    from onelane.wire.server import Broken, ConnectionLost, Ended, Messages, Opened, ServerConnection

LIMITS = Limits(max_streams=8, window=4_096, max_metadata=1_024)
LARGEST = 2_000


def receive(data: bytes) -> None:
    """Give a connection `data`, and answer its calls as a listener might."""
    if not data:
        return
    wire = ServerConnection(LIMITS, max_message=LARGEST, joins=bool(data[0] % 2))
    size = 1 + data[0]
    is_over = False
    ended: set[int] = set()
    for at in range(1, len(data), size):
        for event in wire.receive(data[at : at + size]):
            if isinstance(event, Opened):
                assert event.stream.id not in ended
                try:
                    event.stream.metadata()
                except BadWire as error:
                    wire.finish(event.stream, error.code, str(error))
                if event.message is not None:
                    assert len(event.message) <= LARGEST
                    answer(wire, Messages(event.stream, [event.message], last=True))
            elif isinstance(event, Messages):
                assert all(len(message) <= LARGEST for message in event.messages)
                answer(wire, event)
            elif isinstance(event, Broken):
                wire.finish(event.stream, event.code, event.details)
            elif isinstance(event, Ended):
                assert event.stream.id not in ended
                ended.add(event.stream.id)
            elif isinstance(event, ConnectionLost):
                is_over = True
        wire.take()
        assert wire.http2.is_over or not is_over
        assert len(wire.streams) <= LIMITS.max_streams


def answer(wire: ServerConnection, event: Messages) -> None:
    """Echo what came, on streams that are still there."""
    stream = event.stream
    if stream.id not in wire.streams:
        return
    if stream.unread:
        wire.consumed(stream)
    for message in event.messages:
        wire.send_message(stream, framing.frame(message))
    if stream.ended:
        wire.finish(stream, framing.OK)


def main() -> None:
    atheris.Setup(sys.argv, receive)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
