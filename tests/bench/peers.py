"""What onelane is measured against, each a process of its own: `python -m tests.bench.peers KIND`.

raw: bare grpc.aio on uvloop. pygrpc-native: its asyncio server, on uvloop. grpclib: on uvloop. probe: see probe.py.
opentelemetry: raw, with OpenTelemetry's SDK. threads: the threaded `grpc.server`, see diamond.py. All have the same
handler's body. aiosqlite, asyncpg: counters with a commit for each call, see durable_peers.py; restate: the service
behind Restate's server. grpc-go and tonic are programs of their own, built where Go and Rust are: `built`.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import uvloop

from tests.bench import diamond, durable_peers, raw
from tests.bench.probe import Probe
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import ROOT

CERTIFICATE, PRIVATE_KEY = "BENCH_CERTIFICATE", "BENCH_PRIVATE_KEY"
"""Variables with the files by which `raw` serves TLS."""
# The bench extra is installed for `make bench` alone, so nothing but a started peer imports it.


async def grpc_aio() -> tuple[int, Any]:
    import grpc.aio

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    raw.register(server)
    if CERTIFICATE in os.environ:
        port = server.add_secure_port("127.0.0.1:0", _credentials())
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return port, server


def _credentials() -> Any:
    from grpc import ssl_server_credentials

    key, certificate = (Path(os.environ[name]).read_bytes() for name in (PRIVATE_KEY, CERTIFICATE))
    return ssl_server_credentials([(key, certificate)])


async def opentelemetry() -> tuple[int, Any]:
    """grpc.aio with OpenTelemetry's SDK and its instrumentation, set up by the standard variables."""
    import grpc.aio
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    instrumentation = import_module("opentelemetry.instrumentation.grpc")
    provider = TracerProvider(resource=Resource.create({"service.name": "echo"}))
    # The queue's usual bound would drop most of a run, which costs nothing.
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=65_536))
    trace.set_tracer_provider(provider)
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=options, interceptors=[instrumentation.aio_server_interceptor()])
    raw.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return port, server


async def pygrpc_native() -> tuple[int, Any]:
    options = [("grpc.max_receive_message_length", -1)]
    server = import_module("pygrpc_native.aio").server(options=options)
    echo_pb2_grpc.add_EchoServicer_to_server(raw.Echo(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return port, server


async def grpclib() -> tuple[int, Any]:
    const = import_module("grpclib.const")
    echo = raw.Echo()  # type: ignore[abstract]

    async def unary(stream: Any) -> None:
        await stream.send_message(await echo.Unary(await stream.recv_message(), None))

    class Service:
        def __mapping__(self) -> dict[str, Any]:
            handler = const.Handler(unary, const.Cardinality.UNARY_UNARY, EchoRequest, EchoReply)
            return {"/echo.v1.Echo/Unary": handler}

    server = import_module("grpclib.server").Server([Service()])
    await server.start("127.0.0.1", 0)
    return server._server.sockets[0].getsockname()[1], server


async def probe() -> tuple[int, Any]:
    server = await asyncio.get_running_loop().create_server(Probe, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1], server


async def threads() -> tuple[int, Any]:
    return diamond.start()


KINDS: dict[str, Callable[[], Awaitable[tuple[int, Any]]]] = {
    "raw": grpc_aio,
    "opentelemetry": opentelemetry,
    "pygrpc-native": pygrpc_native,
    "grpclib": grpclib,
    "probe": probe,
    "threads": threads,
    "aiosqlite": durable_peers.over_sqlite,
    "asyncpg": durable_peers.over_postgres,
    "restate": durable_peers.behind_restate,
}


async def main(kind: str) -> None:
    """Serve until killed. The server is kept: one that nobody holds stops."""
    port, _server = await KINDS[kind]()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


BUILT = {"grpc-go": "grpc_go", "tonic": "tonic", "npm": "npm", "earlier": "earlier"}
"""Peers that are no Python, and their folders. npm: see http_peers.py. earlier: the sources of an earlier onelane."""


def built(kind: str) -> str | None:
    """The path of a peer's program or sources, which is built at first; None where that cannot be, as stderr says."""
    build = ROOT / "tests" / "bench" / BUILT[kind] / "build.sh"
    outcome = subprocess.run([build], stdout=PIPE, text=True)
    return outcome.stdout.strip() if outcome.returncode == 0 else None


@contextmanager
def peer(kind: str, **environment: str) -> Iterator[tuple[str, int]]:
    """A peer that runs; its address and its pid. kind: of `KINDS`, or the path of a program."""
    command = [sys.executable, "-m", "tests.bench.peers", kind] if kind in KINDS else [kind]
    process = Popen(command, stdout=PIPE, text=True, cwd=ROOT, env=os.environ | environment)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{kind} did not start")
        yield address, process.pid
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
