"""Stock clients compute our owners by the xDS server: of each key, standing and while placements change."""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onelane.cluster.xds.routed_app import RoutedApp
from onelane.core.placement import POINTS, Placement
from onelane.core.ring import hash_of
from onelane.supervisor.xds_server import XdsServer
from onelane.v1 import xds_pb2

from tests import tools
from tests.cluster.xds.stock_clients import COMMANDS, client_of, placement_of
from tests.running_app import ROOT, echo, running
from tests.servers import servers_that_say_their_addresses

pytestmark = pytest.mark.slow
CLIENTS = [*COMMANDS, "envoy", "envoy-delta"]
KEYS = 1000
FEW_KEYS = 200
"""Asked for again and again until a client has followed a change: fifty to a shard."""
JAVA_END = 2**63
"""grpc-java's hashes are signed: its ring ends here, and it gives keys beyond the last point to that point."""


@asynccontextmanager
async def xds_server(placement: Placement) -> AsyncIterator[XdsServer]:
    server = XdsServer("127.0.0.1:0")
    await server.start()
    server.show({"lobby": RoutedApp(placement)})
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Of four servers that say where they are."""
    with servers_that_say_their_addresses(4) as addresses:
        yield addresses


def owners(placement: Placement, keys: range) -> list[str]:
    return [placement.owner_of(str(key)).address for key in keys]


def keys_at_the_end(client: str, addresses: list[str]) -> set[str]:
    """Keys that grpc-java does not wrap, as tests/core/test_ring.py has it."""
    if client != "grpc-java":
        return set()
    points = [hash_of(f"{address}_{k}".encode()) for address in addresses for k in range(POINTS)]
    last_point = max((point for point in points if point < JAVA_END), default=0)
    return {key for key in map(str, range(KEYS)) if last_point < hash_of(key.encode()) < JAVA_END}


@pytest.mark.parametrize(("client", "shards"), [("grpcio", 1), *((client, 16) for client in CLIENTS)])
async def test_each_key_goes_to_its_owner(client: str, shards: int, tmp_path: Path) -> None:
    with servers_that_say_their_addresses(shards) as addresses:
        placement = placement_of(addresses)
        async with (
            xds_server(placement) as server,
            client_of(client, server, tmp_path, "/test/Where") as stock,
        ):
            answers = await stock.ask(0, KEYS)
    wanted = owners(placement, range(KEYS))
    differences = {str(key) for key in range(KEYS) if answers[key] != wanted[key]}
    assert differences <= keys_at_the_end(client, addresses)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_change_is_followed_and_no_call_fails(client: str, tmp_path: Path, addresses: list[str]) -> None:
    """A shard joins, drains, and has gone; keys are pinned, and no more."""
    first, *rest = sorted(addresses)
    three, four = placement_of(rest), placement_of([first, *rest], epoch=2)
    pinned = placement_of(rest, epoch=4, pins={str(key): rest[key % 3] for key in range(30)})
    shown = [
        RoutedApp(four),
        RoutedApp(four, frozenset({first})),
        RoutedApp(placement_of(rest, epoch=3)),
        RoutedApp(pinned),
        RoutedApp(placement_of(rest, epoch=5)),
    ]
    async with xds_server(three) as server, client_of(client, server, tmp_path, "/test/Where") as stock:
        for app in [RoutedApp(three), *shown]:
            server.show({"lobby": app})
            answers, wanted = list[str](), owners(app.owners, range(FEW_KEYS))
            at_the_end = keys_at_the_end(client, [member.address for member in app.owners.members])
            while {str(key) for key in range(FEW_KEYS) if answers[key : key + 1] != wanted[key : key + 1]} - at_the_end:
                answers = await stock.ask(0, FEW_KEYS)
                assert [answer for answer in answers if answer.startswith("!")] == []


@pytest.mark.parametrize("client", CLIENTS)
async def test_of_a_thousand_calls_to_an_app_none_is_forwarded(client: str, tmp_path: Path) -> None:
    with running(tmp_path, echo(3)) as app:
        placement = app.placement()
        async with (
            xds_server(placement) as server,
            client_of(client, server, tmp_path, "/echo.v1.Echo/Unary") as stock,
        ):
            answers = await stock.ask(0, KEYS)
        assert [answer for answer in answers if answer.startswith("!")] == []
        metrics = app.scrape()
        at_the_end = keys_at_the_end(client, [member.address for member in placement.members])
        assert metrics.metric("onelane_forwards_total") <= len(at_the_end)


def test_the_messages_have_the_names_numbers_and_types_of_envoys_own() -> None:
    """As go-control-plane has them, which is generated from the originals."""
    messages = dict(_originals(xds_pb2.DESCRIPTOR.message_types_by_name.values()))
    described = subprocess.run(
        [tools.grpc_xds(), "describe", *messages.values()], capture_output=True, text=True, check=True
    )
    rows = {tuple(line.split()) for line in described.stdout.splitlines()}
    assert {(name,) for name in messages.values()} <= rows
    for descriptor, name in messages.items():
        for field in descriptor.fields:
            [original] = [row for row in rows if row[:2] == (name, str(field.number))]
            assert original[2:] in _spellings(field, messages), f"{name} has {original}"


def _originals(descriptors: object) -> Iterator[tuple[Descriptor, str]]:
    """Each message of ours, and the full name that the comment before it has."""
    text = (ROOT / "runtime/onelane/protos/onelane/v1/xds.proto").read_text()
    for descriptor in descriptors:  # type: ignore[attr-defined]
        [name] = re.findall(rf"// (\S+\.{descriptor.name})\n *message {descriptor.name} {{", text)
        yield descriptor, name
        yield from _originals(nested for nested in descriptor.nested_types if not nested.GetOptions().map_entry)


KINDS = {
    FieldDescriptor.TYPE_STRING: {"string"},
    FieldDescriptor.TYPE_UINT32: {"uint32"},
    FieldDescriptor.TYPE_DOUBLE: {"double"},
    # Ours has no enums: on the wire they are these.
    FieldDescriptor.TYPE_INT32: {"int32", "enum"},
    FieldDescriptor.TYPE_MESSAGE: {"message"},
}


def _spellings(field: FieldDescriptor, messages: dict[Descriptor, str]) -> set[tuple[str, ...]]:
    """What the original of a field may be: name, cardinality, kind, and the name of a message."""
    cardinality = "repeated" if field.is_repeated else "optional"
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return {(field.name, cardinality, "map", kind) for kind in KINDS[value.type]}
    if field.message_type is not None:
        of = messages.get(field.message_type, field.message_type.full_name)
        return {(field.name, cardinality, "message", of)}
    return {(field.name, cardinality, kind) for kind in KINDS[field.type]}
