"""The mirror's app on three shards, and a client of it that sees all there is to see of a call."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onelane.wire.framing import frame, frame_compressed

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.interop import raw
from tests.running_app import RunningApp, running
from tests.servers import Files

KEY = "k"
SHAPES = {"Unary": False, "Download": False, "Upload": True, "Chat": True}
"""Method → whether its requests are a stream."""


@dataclass(frozen=True)
class Row:
    """One kind of call: what the client sends, and what the handler is to do."""

    name: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    order: dict[str, Any] = field(default_factory=dict)
    request_size: int = 10
    packed: bool = False
    """The messages are compressed."""
    expected: str = "200/0"
    """HTTP status and grpc-status, or what else ends the call."""


ERROR_ID = re.compile(rb"(?<=under )[0-9a-f]{12}")


class Side:
    """One address of the app, and what its client has to prove."""

    def __init__(self, address: str, tls: Any) -> None:
        self.address = address
        self._tls = tls

    @contextmanager
    def call(self, method: str, row: Row) -> Iterator[raw.Exchange]:
        """A call that is sent; its connection ends with it."""
        text = json.dumps(row.order).ljust(row.request_size)
        messages = [EchoRequest(key=KEY, text=text).SerializeToString()] * (2 if SHAPES.get(method) else 1)
        pack = partial(frame_compressed, b"gzip") if row.packed else frame
        with raw.Exchange(self.address, self._tls) as call:
            call.open(raw.request(f"/echo.v1.Echo/{method}".encode(), *row.headers))
            for number, message in enumerate(messages, start=1):
                call.put(pack(message), end=number == len(messages))
            call.write()
            yield call

    def see(self, method: str, row: Row) -> dict[str, Any]:
        """What client and handler see of one call."""
        with self.call(method, row) as call:
            return as_seen(call.wait_answered(), call.local_address)


def as_seen(answer: raw.Answer, client: str) -> dict[str, Any]:
    headers, trailers = dict(answer.headers), dict(answer.trailers)
    handler = headers.pop(b"x-seen", None) or trailers.pop(b"x-seen", b"null")
    for fields in (headers, trailers):
        if b"grpc-message" in fields:
            fields[b"grpc-message"] = ERROR_ID.sub(b"an id", fields[b"grpc-message"])
    return {
        "headers": headers,
        "trailers": trailers,
        "messages": [(flag, len(message), hash(message)) for flag, message in answer.messages],
        "seen": answer.seen,
        "handler": json.loads(handler.replace(client.encode(), b"the client")),
    }


@dataclass(frozen=True)
class Mirrored:
    """A running app, and the sides on which the key `k` is at home and away."""

    app: RunningApp
    home: Side
    away: Side
    listener: str


@contextmanager
def mirrored_app(folder: Path, listener: str) -> Iterator[Mirrored]:
    """Three shards, with mutual TLS."""
    lines = ["[apps.mirror]", 'services = ["tests.mirror.service:Mirror"]', 'listen = "127.0.0.1:0"']
    lines += ["shards = 3", "max_message_bytes = 400000", 'compression = "gzip"']
    context, secured = secure(folder)
    with running(folder, "\n".join([*lines, f'listener = "{listener}"', *secured])) as app:
        placement = app.placement("mirror")
        owner = placement.owner_of(KEY)
        sibling = next(member for member in placement.members if member != owner)
        yield Mirrored(app, Side(owner.address, context), Side(sibling.address, context), listener)


def secure(folder: Path) -> tuple[Any, list[str]]:
    """The context of a client with a certificate, and the settings of its server."""
    files = Files(folder)
    files.issue("client", "client.example", "me@example.com")
    context = files.client(cert="client")
    context.set_alpn_protocols(["h2"])
    names = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    return context, ["[apps.mirror.tls]", *(f'{option} = "{files.path(name)}"' for option, name in names.items())]
