"""The server under test, as connectconformance starts it: `python -m tests.conformance.server PLACE LISTENER REPORT`.

It takes one ServerCompatRequest, answers where its app listens, and ends by SIGTERM. PLACE says where the calls are
served, see PLACES. REPORT is a file to which it appends what its app has counted, one JSON object for each app.
"""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.headers import read_message, write_message
from tests.conformance.v1.compat_pb2 import ServerCompatRequest, ServerCompatResponse
from tests.running_app import RunningApp, running

SERVICE = "connectrpc.conformance.v1.ConformanceService"


@dataclass(frozen=True)
class Place:
    shards: int
    settings: str = ""
    own_port: bool = False
    """Whether clients connect to the own port of the first shard, where no connection is steered."""


ON_ANOTHER_SHARD = 'pins = { "0" = 1 }'
"""The key in the requests is always 0."""
PLACES = {
    "home": Place(1),
    "away": Place(3, ON_ANOTHER_SHARD, own_port=True),
    "steered": Place(3, ON_ANOTHER_SHARD),
    # A key for each case, in the metadata: two of three are away.
    "spread": Place(3, f'keys = {{ "{SERVICE}/*" = "metadata:x-test-case-name" }}'),
}


def toml(place: Place, listener: str, asked: ServerCompatRequest, folder: Path) -> str:
    lines = [
        "[apps.conformance]",
        'services = ["tests.conformance.service:Conformance"]',
        'listen = "127.0.0.1:0"',
        f'turns = {{ "{SERVICE}/*" = "FREE" }}',
        f'listener = "{listener}"',
        f"shards = {place.shards}",
        f"max_message_bytes = {asked.message_receive_limit}",
        place.settings,
    ]
    if asked.use_tls:
        lines += ["[apps.conformance.tls]", *tls(asked, folder)]
    return "\n".join(lines)


def tls(asked: ServerCompatRequest, folder: Path) -> list[str]:
    files = {"cert": asked.server_creds.cert, "key": asked.server_creds.key, "client_ca": asked.client_tls_cert}
    for name, pem in files.items():
        (folder / name).write_bytes(pem)
    return [f'{name} = "{folder / name}"' for name, pem in files.items() if pem]


def counts(app: RunningApp) -> dict[str, float]:
    return {
        "calls": app.metric("onelane_calls_total"),
        "forwards": app.metric("onelane_forwards_total"),
        "steered": app.metric("onelane_connections_total", onelane_connection_steered="true"),
    }


def main(place: Place, listener: str, report: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    asked = read_message(sys.stdin.buffer, ServerCompatRequest)
    assert asked is not None
    with tempfile.TemporaryDirectory() as name, app_of(toml(place, listener, asked, Path(name)), Path(name)) as app:
        address = app.shards("conformance")[0]["address"] if place.own_port else app.listen["conformance"]
        port = int(address.rpartition(":")[2])
        answer = ServerCompatResponse(host="127.0.0.1", port=port, pem_cert=asked.server_creds.cert)
        write_message(sys.stdout.buffer, answer)
        try:
            signal.pause()
        finally:
            line = json.dumps({"tls": asked.use_tls, **counts(app)})
            with report.open("a") as lines:
                lines.write(f"{line}\n")


@contextmanager
def app_of(settings: str, folder: Path) -> Iterator[RunningApp]:
    """The running app; its log goes to stderr where it does not become ready."""
    is_ready = False
    try:
        with running(folder, settings) as app:
            is_ready = True
            yield app
    finally:
        if not is_ready:
            sys.stderr.write((folder / "log").read_text())


if __name__ == "__main__":
    main(PLACES[sys.argv[1]], sys.argv[2], Path(sys.argv[3]))
