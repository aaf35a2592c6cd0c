"""Stock clients of xDS as processes, and servers that they may call."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from onelane.core.placement import Member, Placement

from tests import tools
from tests.ports import reserved
from tests.running_app import ROOT

CAP = str(1 << 20)
"""Points of the largest ring that a client builds."""


class Addressed(Protocol):
    """A server of xDS."""

    @property
    def address(self) -> str:
        """`ip:port`."""


class StockClient:
    """A process that calls one method with many keys; see `grpcio_client`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, first: int, count: int) -> list[str]:
        """The answers to calls with these keys, in their order; an error begins with `!`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{first} {count}\n".encode())
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        assert line, f"the client has ended: {await self._process.wait()}"
        answers: list[str] = json.loads(line)
        return answers


@asynccontextmanager
async def _process(command: list[str], **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A line has all answers.
        limit=2**24,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def bootstrap(server: Addressed) -> dict[str, Any]:
    """What a client of gRPC needs to know."""
    xds_server = {
        "server_uri": server.address,
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    return {"xds_servers": [xds_server], "node": {"id": "a-test"}}


def _grpcio() -> list[str]:
    return [sys.executable, "-m", "tests.cluster.xds.grpcio_client"]


COMMANDS: dict[str, Callable[[], list[str]]] = {
    "grpcio": _grpcio,
    "grpc-go": lambda: [tools.grpc_xds(), "client"],
    "grpc-java": lambda: [tools.grpc_java(), "XdsOwners"],
}
"""Each stock client of gRPC, and its command without the target and the method."""


@asynccontextmanager
async def client_of(
    name: str, server: Addressed, folder: Path, method: str, *, app: str = "lobby"
) -> AsyncIterator[StockClient]:
    """A client that follows an app of the server: of `COMMANDS`, or, for `lobby`, `envoy` or `envoy-delta` with a
    client of gRPC that knows of no xDS before it."""
    if name in COMMANDS:
        environment = {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap(server)), "GRPC_RING_HASH_CAP": CAP}
        async with _process([*COMMANDS[name](), f"xds:///{app}", method], **environment) as process:
            yield StockClient(process)
        return
    with reserved() as port:
        file = folder / "envoy.json"
        file.write_text(json.dumps(envoy_config(server, port, is_delta=name == "envoy-delta")))
        options = ["--config-path", str(file), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        async with (
            _process([tools.envoy(), *options]),
            _process([*_grpcio(), f"127.0.0.1:{port}", method]) as process,
        ):
            yield StockClient(process)


def envoy_config(server: Addressed, port: int, *, is_delta: bool) -> dict[str, Any]:
    """Of an Envoy that listens at a port, and sends what comes to the app `lobby`."""
    ads = {"resource_api_version": "V3", "ads": {}}
    host, xds_port = server.address.split(":")
    url = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{url}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "lobby",
        "codec_type": "HTTP2",
        "rds": {"route_config_name": "lobby", "config_source": ads},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{url}.filters.http.router.v3.Router"}}],
    }
    listener = {
        "name": "lobby",
        # As a port that is reserved can be bound.
        "enable_reuse_port": False,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    http2 = {
        "@type": f"{url}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    address = {"socket_address": {"address": host, "port_value": int(xds_port)}}
    cluster = {
        "name": "xds",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "xds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    source = {
        "api_type": "DELTA_GRPC" if is_delta else "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
    }
    return {
        "node": {"id": "an-envoy", "cluster": "tests"},
        "dynamic_resources": {"ads_config": source, "cds_config": ads},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def placement_of(addresses: list[str], *, epoch: int = 1, pins: dict[str, str] | None = None) -> Placement:
    """Of shards whose names are their addresses."""
    return Placement(epoch, tuple(Member(address, address, "") for address in addresses), pins=pins or {})
