"""A service that calls another app, or another shard of its own, calls for its client; nobody can forge who that is."""

from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest
from onelane.core.context import TaskContext, current_call_var
from onelane.core.identity import ANONYMOUS, ASSERTION, Assertion, Identity, own_account, read_assertion
from onelane.shard.assertions import Assertions
from onelane.testing.listener import MemoryCall

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.issuer import AUDIENCE, ISSUER, Issuer, bearer
from tests.running_app import ECHO, RunningApp, running

KEY, NOW = b"k" * 32, 1000.0
ANN = Identity("ann", frozenset({"admin"}), "jwt", NOW + 600)


def asserted(identity: Identity | None, **more: Any) -> Identity | None:
    """Of whom `profile` is told where a call of this client's is in progress in `lobby`."""
    call: Any = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    if identity is not None:
        call.prove(identity)
    return asserted_in(call, **more)


def asserted_in(context: Any, **more: Any) -> Identity | None:
    write = Assertions("lobby", ["profile"], KEY, lambda: NOW).writer("profile", **more)
    assert write is not None
    token = current_call_var.set(context)
    try:
        assertion = read_assertion(write(), to="profile", key=KEY, now=NOW)
    finally:
        current_call_var.reset(token)
    assert assertion == Assertion("lobby", assertion.identity)
    return assertion.identity


def test_a_call_is_made_for_the_client_of_the_call_in_progress() -> None:
    assert asserted(ANN) == ANN
    assert asserted(ANONYMOUS) == ANONYMOUS


def test_a_call_is_on_the_apps_own_account_where_no_client_is_known_or_the_service_asks_for_that() -> None:
    assert asserted(None) is None
    assert asserted_in(None) is None
    assert asserted_in(TaskContext("/timer t")) is None
    assert asserted(own_account("lobby")) is None
    assert asserted(ANN, on_own_account=True) is None
    # It is not this app.
    assert asserted(own_account("shop", ["reader"])) == own_account("shop", ["reader"])


def test_apps_that_do_not_name_the_caller_are_told_nothing() -> None:
    assert Assertions("lobby", ["profile"], KEY).writer("billing") is None
    assert Assertions("lobby", ["profile"], KEY).identity_within_app() is None
    assert Assertions("lobby", ["lobby"], KEY).identity_within_app() == own_account("lobby")


OWN = Issuer("EdDSA")


def app(name: str, *more: str) -> str:
    return "\n".join([f"[apps.{name}]", ECHO, 'listen = "127.0.0.1:0"', f"shards = {1 + (name == 'front')}", *more, ""])


def guarded(name: str, keys_file: str, apps: str, *roles: str) -> str:
    tokens = f'jwt = {{ issuer = "{ISSUER}", audience = "{AUDIENCE}", keys_file = "{keys_file}" }}'
    methods = ", ".join(f'"{role}"' for role in roles)
    return app(name, f"[apps.{name}.auth]", tokens, f"apps = {apps}", f'methods = {{ "*" = [{methods}] }}')


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """`front` is public and knows its clients; `back` takes the calls of `front` and `open`, `vault` takes none.

    Inline: the shards of all apps share a process, but not who is who.
    """
    folder = tmp_path_factory.mktemp("apps")
    keys_file = OWN.write(folder / "keys.json")
    toml = guarded("front", keys_file, "{}", "public") + app("open")
    toml += guarded("back", keys_file, "{ front = [], open = ['admin'] }", "admin")
    toml += guarded("vault", keys_file, "{ back = [] }", "admin")
    with running(folder, toml, "--inline") as running_app:
        yield running_app


async def ask(apps: RunningApp, first: str, order: str, metadata: Any = ()) -> str:
    """The identity that the last app of an order sees, or the status."""
    async with grpc.aio.insecure_channel(apps.listen[first]) as channel:
        call = echo_pb2_grpc.EchoStub(channel).Misbehave(
            EchoRequest(key="k", order=order), metadata=metadata, timeout=BOUND_S
        )
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return str(dict(await call.trailing_metadata() or ())["x-identity"])


ADMIN, NOBODY = bearer(OWN.token("admin")), bearer(OWN.token())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "order", "metadata", "expected"),
    [
        ("front", "asked back identity", ADMIN, "ann admin jwt"),
        ("front", "asked back identity", NOBODY, "PERMISSION_DENIED"),
        # Not on the account of `front`: its client is nobody.
        ("front", "asked back identity", (), "UNAUTHENTICATED"),
        # `vault` believes `back`, and that `front`, and that the token.
        ("front", "asked back asked vault identity", ADMIN, "ann admin jwt"),
        ("front", "asked vault identity", ADMIN, "UNAUTHENTICATED"),
        # It asks no client who it is, and so calls on its own account.
        ("open", "asked back identity", ADMIN, "app:open admin app"),
        ("vault", "asked back identity", ADMIN, "UNAUTHENTICATED"),
        # To both shards of `front`, by one of them.
        ("front", "sibling a identity", ADMIN, "ann admin jwt"),
        ("front", "sibling b identity", ADMIN, "ann admin jwt"),
        ("front", "sibling c identity", (), "anonymous"),
        ("front", "sibling a asked back identity", ADMIN, "ann admin jwt"),
        ("front", "sibling c asked back identity", (), "UNAUTHENTICATED"),
    ],
)
async def test_the_client_is_known_along_the_way_of_calls(
    apps: RunningApp, first: str, order: str, metadata: Any, expected: str
) -> None:
    assert await ask(apps, first, order, metadata) == expected


@pytest.mark.slow
async def test_a_stranger_cannot_use_what_one_app_tells_another(apps: RunningApp) -> None:
    """It has seen an assertion of some app for some app, or makes one up."""
    for key in (b"k" * 32, b"\x00" * 32):
        assertion = Assertions("front", ["back"], key).writer("back")
        assert assertion is not None
        assert await ask(apps, "back", "identity", ((ASSERTION, assertion()),)) == "UNAUTHENTICATED"
