"""gRPC's interoperability tests: each of our listeners with each client, and with one that breaks the rules."""

import asyncio
import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc.aio
import pytest
from onelane.client.channel import dial

from tests import tools
from tests.bounds import BOUND_S
from tests.interop import malformed
from tests.interop.cases import CASES, Case
from tests.interop.malformed import ROWS, Row, frame
from tests.interop.raw import Answer, exchange, request
from tests.interop.v1 import messages_pb2 as m
from tests.running_app import running

pytestmark = pytest.mark.slow

CLIENTS: dict[str, Callable[[str], grpc.aio.Channel]] = {
    "grpc.aio": grpc.aio.insecure_channel,
    "native": dial,
}
NODE_CASES = (
    *("empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "half_duplex"),
    *("empty_stream", "client_compressed_unary", "client_compressed_streaming", "server_compressed_unary"),
    *("server_compressed_streaming", "custom_metadata_unary", "custom_metadata_full_duplex"),
    *("status_code_and_message_unary", "status_code_and_message_full_duplex", "special_status_message"),
    *("rich_status", "unimplemented_method", "unknown_method", "unimplemented_service", "cancel_after_begin"),
    *("cancel_after_first_response", "timeout_on_sleeping_server", "concurrent_large_unary"),
)


@dataclass(frozen=True)
class Interop:
    listener: str
    address: str


@pytest.fixture(scope="module", params=["native", "grpcio"])
def interop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interop]:
    toml = f"""
        [apps.interop]
        services = ["tests.interop.service:Interop"]
        listen = "127.0.0.1:0"
        shards = 1
        listener = "{request.param}"
        max_message_bytes = {malformed.MAX_MESSAGE}
    """
    with running(tmp_path_factory.mktemp("interop"), toml) as cluster:
        yield Interop(request.param, cluster.listen["interop"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_python_client_finds_what_the_specification_promises(interop: Interop, client: str, case: Case) -> None:
    async with CLIENTS[client](interop.address) as channel, asyncio.timeout(BOUND_S):
        await case(channel)


def test_grpc_js_finds_what_the_specification_promises(interop: Interop) -> None:
    node, client = tools.node_client()
    run = subprocess.run(
        [node, client.replace("client.js", "interop.js"), interop.address],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    errors = {line["case"]: line["error"] for line in map(json.loads, run.stdout.splitlines())}
    assert errors == dict.fromkeys(NODE_CASES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_request_that_breaks_the_rules_is_answered_alike(interop: Interop, row: Row) -> None:
    answer = exchange(interop.address, row.headers_for(interop.listener), *row.pieces, end=row.end)
    assert answer.seen == row.answer_of(interop.listener)


def test_an_error_is_a_status_without_a_message(interop: Interop) -> None:
    wanted = m.SimpleRequest(response_status=m.EchoStatus(code=5, message="nothing here"))
    answer = exchange(interop.address, request(malformed.UNARY), frame(wanted.SerializeToString()))
    assert (answer.seen, answer.messages) == ("200/5", [])


def test_every_difference_has_its_reason() -> None:
    assert [row.name for row in ROWS if bool(row.native) != bool(row.why) or row.native == row.grpcio] == []


# Compression, where alone it can be seen.


def test_an_encoding_that_is_not_known_is_answered_with_those_that_are(interop: Interop) -> None:
    """grpcio 1.85 does not say, whoever drives it, though compression.md asks for it."""
    answer = exchange(interop.address, request(malformed.UNARY, malformed.BROTLI), frame(malformed.ASK, 1))
    if interop.listener == "grpcio":
        assert b"grpc-accept-encoding" not in answer.headers | answer.trailers
        return
    known = (answer.headers | answer.trailers)[b"grpc-accept-encoding"].replace(b" ", b"").split(b",")
    assert {b"identity", b"gzip"} <= set(known)
    assert b"brotli" not in known


def test_a_stream_may_mix_messages_that_are_compressed_with_others(interop: Interop) -> None:
    """client_compressed_streaming."""
    messages = [m.StreamingInputCallRequest(payload=m.Payload(body=bytes(size))) for size in (27_182, 45_904)]
    packed, plain = (message.SerializeToString() for message in messages)
    headers = request(malformed.UPLOAD, malformed.GZIP)
    answer = exchange(interop.address, headers, frame(gzip.compress(packed), 1), frame(plain))
    ((_, reply),) = answer.messages
    assert answer.seen == "200/0"
    assert m.StreamingInputCallResponse.FromString(reply).aggregated_payload_size == 73_086


def ask(interop: Interop, path: bytes, message: bytes, *, accept: bytes = b"identity,gzip") -> Answer:
    return exchange(interop.address, request(path, (b"grpc-accept-encoding", accept)), frame(message))


def unpacked(answer: Answer) -> list[tuple[int, bytes]]:
    """The messages of an answer, each with its flag as it came."""
    if any(flag for flag, _ in answer.messages):
        assert answer.headers[b"grpc-encoding"] == b"gzip"
    return [(flag, gzip.decompress(message) if flag else message) for flag, message in answer.messages]


@pytest.mark.parametrize("compressed", [True, False])
def test_an_answer_is_compressed_where_the_handler_says_so(interop: Interop, compressed: bool) -> None:
    """server_compressed_unary. grpc.aio, whoever drives it, compresses no unary answer."""
    wanted = m.SimpleRequest(response_size=314_159, response_compressed=m.BoolValue(value=compressed))
    ((flag, reply),) = unpacked(ask(interop, malformed.UNARY, wanted.SerializeToString()))
    assert flag == (compressed and interop.listener == "native")
    assert len(m.SimpleResponse.FromString(reply).payload.body) == 314_159


def test_a_handler_leaves_one_message_of_a_stream_uncompressed(interop: Interop) -> None:
    """server_compressed_streaming."""
    sizes = {31_415: True, 92_653: False}
    parameters = [m.ResponseParameters(size=n, compressed=m.BoolValue(value=flag)) for n, flag in sizes.items()]
    wanted = m.StreamingOutputCallRequest(response_parameters=parameters)
    payloads = unpacked(ask(interop, malformed.DOWNLOAD, wanted.SerializeToString()))
    replies = [(len(m.StreamingOutputCallResponse.FromString(reply).payload.body), flag) for flag, reply in payloads]
    assert replies == list(sizes.items())


def test_a_client_that_cannot_unpack_gets_plain_answers(interop: Interop) -> None:
    wanted = m.SimpleRequest(response_size=314_159, response_compressed=m.BoolValue(value=True))
    answer = ask(interop, malformed.UNARY, wanted.SerializeToString(), accept=b"identity")
    assert [flag for flag, _ in answer.messages] == [0]
