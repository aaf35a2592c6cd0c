"""What a shard serves, and what it refuses to serve before it listens."""

from typing import Any

import pytest
from onelane.errors import BadService
from onelane.shard.wiring import ShardParts

from tests.echo.v1 import echo_pb2_grpc
from tests.shard.parts import ECHO, setup, wired


class Twin(echo_pb2_grpc.EchoServicer):
    """Serves `echo.v1.Echo` as well."""


class Refused(echo_pb2_grpc.EchoServicer):
    """Cannot be made."""

    def __init__(self) -> None:
        raise BadService("the sauce is missing")


def parts_of(**settings: Any) -> ShardParts:
    parts, _ = wired(setup(**settings))
    return parts


def served(parts: ShardParts) -> set[str]:
    """`pkg.Service` of every method on the lane."""
    return {path[1:].partition("/")[0] for path in parts.lane.entries}


async def test_it_serves_the_apps_services_the_runtimes_own_health_and_reflection_in_both_versions() -> None:
    parts = parts_of(reflection=True)
    parts.services.load()
    assert [type(servicer).__name__ for servicer in parts.services.servicers] == ["Echo"]
    assert served(parts) == {
        "echo.v1.Echo",
        "onelane.v1.Topology",
        "onelane.v1.Siblings",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    await parts.shard.aclose()


async def test_health_and_reflection_can_be_left_out_and_health_is_then_not_set() -> None:
    parts = parts_of(health=False, reflection=False)
    parts.services.load()
    await parts.services.set_health(serving=True)
    assert served(parts) == {"echo.v1.Echo", "onelane.v1.Topology", "onelane.v1.Siblings"}
    await parts.shard.aclose()


async def test_health_is_serving_for_every_service_and_for_the_server_until_it_is_not() -> None:
    from grpc_health.v1 import health_pb2

    async def status_of(name: str) -> int:
        reply = await parts.lane.entries["/grpc.health.v1.Health/Check"].method.handler(
            health_pb2.HealthCheckRequest(service=name), None
        )
        return int(reply.status)

    parts = parts_of()
    parts.services.load()
    status = health_pb2.HealthCheckResponse
    await parts.services.set_health(serving=True)
    assert [await status_of(name) for name in ("", "echo.v1.Echo", "onelane.v1.Topology")] == [status.SERVING] * 3
    await parts.services.set_health(serving=False)
    assert [await status_of(name) for name in ("", "echo.v1.Echo")] == [status.NOT_SERVING] * 2
    await parts.services.set_health(serving=True)
    assert await status_of("") == status.SERVING
    await parts.services.end_health()
    await parts.services.set_health(serving=True)
    assert [await status_of(name) for name in ("", "echo.v1.Echo")] == [status.NOT_SERVING] * 2
    await parts.shard.aclose()


async def test_two_services_of_one_name_are_refused() -> None:
    parts = parts_of(services=(ECHO, "tests.shard.test_services:Twin"))
    with pytest.raises(BadService, match=r":Twin: echo\.v1\.Echo/\w+ is served already by another service of this app"):
        parts.services.load()
    await parts.shard.aclose()


@pytest.mark.parametrize("table", ["keys", "turns"])
async def test_a_configured_key_or_turn_of_an_unknown_method_is_refused(table: str) -> None:
    rule = {"keys": "ANY", "turns": "FREE"}[table]
    parts = parts_of(**{table: {"echo.v1.Echo/*": rule, "echo.v1.Echo/Nope": rule}})
    with pytest.raises(BadService, match=rf"apps\.echo\.{table}: no service has \['echo\.v1\.Echo/Nope'\]"):
        parts.services.load()
    await parts.shard.aclose()


async def test_all_servicers_that_cannot_be_served_are_named_at_once() -> None:
    parts = parts_of(services=("tests.greeter.service:Greeter", "tests.shard.test_services:Refused"))
    with pytest.raises(BadService) as caught:
        parts.services.load()
    message = str(caught.value)
    assert "apps.echo.services: tests.greeter.service:Greeter: greeter.v1.Greeter/Everyone: has no key" in message
    assert "apps.echo.services: tests.shard.test_services:Refused: the sauce is missing" in message
    await parts.shard.aclose()
