"""A test is any client that it wants to be, by the permissions of the file and without keys or tokens."""

from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane import Identity
from onelane.testing import Cluster

from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.issuer import AUDIENCE, ISSUER, Issuer, bearer

METHODS = {"*": ["admin"], "echo.v1.Echo/Unary": ["reader", "admin"], "echo.v1.Echo/Who": ["public"]}
ANN = Identity("ann", frozenset({"reader"}), "jwt")


def auth(**place: str) -> dict[str, Any]:
    return {"auth": {"jwt": {"issuer": ISSUER, "audience": AUDIENCE, **place}, "methods": METHODS}}


async def code_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("place", [{"jwks_url": "https://issuer.invalid/keys"}, {"keys_file": "/nowhere/keys.json"}])
async def test_a_test_calls_as_any_client_wherever_the_keys_of_the_file_are(place: dict[str, str]) -> None:
    async with Cluster(Echo, shards=2, settings=auth(**place)) as cluster:
        stub = cluster.stub(echo_pb2_grpc.EchoStub, identity=ANN)
        assert {await code_of(stub.Unary(EchoRequest(key=key))) for key in "abcd"} == {"OK"}
        assert await code_of(stub.Plain(EchoRequest(key="a"))) == "PERMISSION_DENIED"
        nobody = cluster.stub(echo_pb2_grpc.EchoStub)
        assert await code_of(nobody.Who(EchoRequest())) == "OK"
        for unproven in (nobody, cluster.stub(echo_pb2_grpc.EchoStub, shard=0)):
            assert await code_of(unproven.Unary(EchoRequest(key="a"))) == "UNAUTHENTICATED"


async def test_tokens_count_in_a_test_that_has_their_keys(tmp_path: Path) -> None:
    issuer = Issuer("EdDSA")
    async with Cluster(Echo, shards=1, settings=auth(keys_file=issuer.write(tmp_path / "keys.json"))) as cluster:
        stub = cluster.stub(echo_pb2_grpc.EchoStub)
        call = stub.Unary(EchoRequest(key="a"), metadata=bearer(issuer.token("reader")))
        assert await code_of(call) == "OK"
        assert await code_of(stub.Unary(EchoRequest(key="a"), metadata=bearer("a.b.c"))) == "UNAUTHENTICATED"


async def test_a_shard_and_an_identity_are_not_given_together() -> None:
    async with Cluster(Echo, shards=1) as cluster:
        with pytest.raises(ValueError, match="shard or identity"):
            cluster.stub(echo_pb2_grpc.EchoStub, shard=0, identity=ANN)
