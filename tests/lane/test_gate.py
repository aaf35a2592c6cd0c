"""A call passes the gate once its client is proven and may make it; every other end of the check refuses it."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from onelane.core.identity import ANONYMOUS, ASSERTION, Identity, identity_of
from onelane.core.keys import ANY
from onelane.core.permissions import Permissions
from onelane.errors import TokensNotChecked, Unauthenticated
from onelane.lane.audit import Audit
from onelane.lane.gate import Gate
from onelane.server.call import FORWARDED_HOP, Call
from onelane.server.call_state import DONE
from onelane.server.methods import Method
from onelane.server.plain_context import PlainContext
from onelane.telemetry.codec import point_from_proto
from onelane.telemetry.collector.totals import Totals
from onelane.testing.listener import MemoryCall

from tests.shard.parts import sent, wired

ANN = Identity("ann", frozenset({"reader"}), "jwt")
Identify = Callable[[Call], Identity]


class Authenticating:
    """Stands for an `Authenticator`."""

    takes_tokens = True

    def __init__(self, identify: Identify) -> None:
        self.identify = self.of_sibling = identify


class Gated:
    """A lane behind a gate, with a method that notes whose calls it has served."""

    def __init__(self, identify: Identify, *roles: str, name: str = "t.T/M") -> None:
        self.served: list[Identity | None] = []
        parts, self.supervisor = wired()
        self.parts = parts

        async def serve(request: bytes, context: Any) -> bytes:
            self.served.append(context.identity)
            return request

        self.method = Method(f"/{name}", serve, True, False, False, None, None, ANY)
        parts.lane.add(self.method)
        authenticator: Any = Authenticating(identify)
        table = {name: roles} if roles else {}
        self.gate = Gate(parts.lane, Permissions(table), authenticator, Audit("t-0"))

    async def call(self, *metadata: tuple[str, str], trusted: bool = False, hop: Identity | bool = False) -> Call:
        call = MemoryCall(self.method.path, metadata, trusted=trusted, deadline_s=None)
        if hop is not False:
            call.hop = FORWARDED_HOP
        if isinstance(hop, Identity):
            call.prove(hop)
        await self.gate.serve(self.method, call, b"x")
        return call

    async def refusals(self, reason: str) -> float:
        await self.parts.reporter.report(collect=1)
        totals = Totals()
        for message in await sent(self.supervisor):
            totals.add(map(point_from_proto, message.report.points), extra=())
        return totals.sum_of("onelane.refusals", (("onelane.reason", reason),))


def outcome(call: Call) -> tuple[str, Any]:
    assert call.state is DONE
    return call.code_now.name, dict(call.trailers).get("www-authenticate")


async def test_a_client_with_a_role_of_the_method_is_served_and_its_handler_knows_it() -> None:
    gated = Gated(lambda _: ANN, "reader", "admin")
    call = await gated.call()
    assert outcome(call) == ("OK", None)
    assert gated.served == [ANN]
    assert identity_of(call) == identity_of(PlainContext(call)) == ANN


def refuse(error: Exception) -> Identify:
    def identify(_: Call) -> Identity:
        raise error

    return identify


REFUSED: dict[str, tuple[Identify, tuple[str, ...], tuple[str, Any], str]] = {
    "anonymous": (lambda _: ANONYMOUS, ("admin",), ("UNAUTHENTICATED", "Bearer"), "unauthenticated"),
    "anonymous, for all that are known": (
        *(lambda _: ANONYMOUS, ("authenticated",), ("UNAUTHENTICATED", "Bearer"), "unauthenticated"),
    ),
    "without the role": (lambda _: ANN, ("admin",), ("PERMISSION_DENIED", None), "not_permitted"),
    "to a closed method": (lambda _: ANN, (), ("PERMISSION_DENIED", None), "not_permitted"),
    "with bad credentials": (
        *(refuse(Unauthenticated("secret cause")), ("admin",)),
        *(("UNAUTHENTICATED", 'Bearer error="invalid_token"'), "unauthenticated"),
    ),
    "with bad credentials, to a public method": (
        *(refuse(Unauthenticated("secret cause")), ("public",)),
        *(("UNAUTHENTICATED", 'Bearer error="invalid_token"'), "unauthenticated"),
    ),
    "unchecked": (refuse(TokensNotChecked()), ("admin",), ("RESOURCE_EXHAUSTED", None), "tokens"),
    "where the check has a defect": (refuse(KeyError("secret cause")), ("admin",), ("INTERNAL", None), ""),
}


@pytest.mark.parametrize("who", REFUSED)
async def test_a_refused_call_runs_no_handler_and_its_client_does_not_learn_the_cause(who: str) -> None:
    identify, roles, expected, reason = REFUSED[who]
    gated = Gated(identify, *roles)
    call = await gated.call()
    assert outcome(call) == expected
    assert "secret" not in call.details_now
    assert gated.served == []
    assert gated.parts.lane.in_flight == gated.parts.lane.own_in_flight == 0
    if reason:
        assert await gated.refusals(reason) == 1


@pytest.mark.parametrize("roles", [("public",), ("public", "admin")])
async def test_a_public_method_serves_anonymous_clients_and_knows_the_others(roles: tuple[str, ...]) -> None:
    gated = Gated(lambda call: ANN if call.metadata else ANONYMOUS, *roles)
    assert [outcome(await gated.call(*metadata))[0] for metadata in ((), (("a", "b"),))] == ["OK", "OK"]
    assert gated.served == [ANONYMOUS, ANN]


async def test_everybody_who_is_known_may_call_a_method_for_them() -> None:
    assert outcome(await Gated(lambda _: ANN, "authenticated").call()) == ("OK", None)


async def test_health_is_served_without_a_look_at_credentials() -> None:
    gated = Gated(refuse(Unauthenticated("bad")), name="grpc.health.v1.Health/Check2")
    assert outcome(await gated.call()) == ("OK", None)


async def test_a_forwarded_call_has_the_identity_that_its_sibling_has_proven_and_is_not_asked_again() -> None:
    gated = Gated(refuse(Unauthenticated("asked again")), "admin")
    stray = (ASSERTION, "of the client, and passed on unread")
    assert outcome(await gated.call(stray, trusted=True, hop=ANN)) == ("OK", None)
    assert gated.served == [ANN]


async def test_a_forwarded_call_without_a_proven_identity_is_refused() -> None:
    gated = Gated(lambda _: ANN, "public")
    assert outcome(await gated.call(trusted=True, hop=True))[0] == "UNAUTHENTICATED"
    assert gated.served == []


async def test_the_apps_own_code_may_call_every_method() -> None:
    gated = Gated(lambda _: ANN)
    call = await gated.call(trusted=True)
    assert call.code_now is grpc.StatusCode.OK
    assert gated.served == [ANN]


async def test_a_call_is_checked_once_as_soon_as_its_headers_are_there() -> None:
    checked: list[Call] = []

    def identify(call: Call) -> Identity:
        checked.append(call)
        return ANN

    gated = Gated(identify, "reader")
    for trusted in (False, True):
        call = MemoryCall(gated.method.path, (), trusted=trusted, deadline_s=None)
        gated.gate.announce(gated.method, call)
        await gated.gate.serve(gated.method, call, b"x")
        assert outcome(call) == ("OK", None)
    assert len(checked) == 2
    refused = MemoryCall(gated.method.path, (), trusted=False, deadline_s=None)
    Gated(lambda _: ANONYMOUS, "reader").gate.announce(gated.method, refused)
    assert outcome(refused) == ("UNAUTHENTICATED", "Bearer")


async def test_a_refused_call_is_answered_by_either_way_into_the_lane() -> None:
    gated = Gated(lambda _: ANONYMOUS, "admin")
    call = MemoryCall(gated.method.path, (), trusted=False, deadline_s=None)
    work: Awaitable[None] | None = gated.gate.arrive(gated.method, call, b"x")
    assert work is None
    assert outcome(call) == ("UNAUTHENTICATED", "Bearer")
