"""`onelane ls`, `describe` and `call`: every shape of method, of an app of onelane and of grpcio's own server."""

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from grpc_reflection.v1alpha import reflection
from onelane.cli.main import main
from onelane.cli.message_json import fill_key
from onelane.cli.remote import RemoteServer
from onelane.errors import Invalid, Transient

from tests.bounds import BOUND_S
from tests.conformance.v1 import service_pb2
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.greeter.service import Greeter
from tests.greeter.v1 import greeter_pb2_grpc
from tests.running_app import echo, running
from tests.servers import Files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the echo app."""
    with running(tmp_path_factory.mktemp("echo"), echo(2)) as app:
        yield app.listen["echo"]


class Unprintable(echo_pb2_grpc.EchoServicer):
    """Sends what is hard to print; its other methods are not called."""

    def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        return EchoReply(text="\x1b]0;owned\x07\u202e")

    def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        detail = any_pb2.Any(type_url="type.googleapis.com/nobody.knows.This", value=b"\xff")
        status: Any = status_pb2.Status(code=code_pb2.ABORTED, details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_details("\x1b[1mbold")
        return EchoReply()


@contextmanager
def stock(*, tls: Files | None = None) -> Iterator[str]:
    """grpcio's own server with reflection; its address."""
    server = grpc.server(ThreadPoolExecutor(4))
    greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    echo_pb2_grpc.add_EchoServicer_to_server(Unprintable(), server)  # type: ignore[abstract]
    reflection.enable_server_reflection(["greeter.v1.Greeter", "echo.v1.Echo"], server)
    # Not localhost: its port would be free on one of two addresses, and another process may have it on the other.
    free = "127.0.0.1:0"
    port = server.add_secure_port(free, _credentials(tls)) if tls else server.add_insecure_port(free)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _credentials(files: Files) -> grpc.ServerCredentials:
    ca = Path(files.path("ca.pem")).read_bytes()
    return grpc.ssl_server_credentials([files.pair("server")], ca, require_client_auth=True)


@pytest.fixture(scope="module")
def stock_address() -> Iterator[str]:
    with stock() as listening:
        yield listening


def onelane(*arguments: str) -> Result:
    run = CliRunner().invoke(main, arguments)
    assert run.exception is None or isinstance(run.exception, SystemExit), run.output
    return run


def called(address: str, method: str, *arguments: str) -> list[dict[str, Any]]:
    """The responses of a call that must succeed."""
    run = onelane("call", address, method, *arguments, "--json")
    assert run.exit_code == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return [line["response"] for line in lines if "response" in line]


def test_ls_lists_methods_with_their_kind_and_key(address: str) -> None:
    words = [line.split() for line in onelane("ls", address).stdout.splitlines()]
    rows = {row[0]: row[1:] for row in words}
    assert rows["method"] == ["kind", "request", "response", "key"]
    assert rows["echo.v1.Echo/Unary"] == ["unary", "echo.v1.EchoRequest", "echo.v1.EchoReply", "key"]
    assert [rows[f"echo.v1.Echo/{name}"][0] for name in ("Download", "Upload", "Chat")] == [
        "server-streaming",
        "client-streaming",
        "bidi-streaming",
    ]
    assert rows["echo.v1.Echo/Who"][3] == "ANY"
    assert not [name for name in rows if name.startswith(("grpc.", "onelane."))]
    methods = json.loads(onelane("ls", address, "--all", "--json").stdout)["methods"]
    assert {"grpc.health.v1.Health/Check", "onelane.v1.Topology/Watch"} <= {method["name"] for method in methods}


def test_describe_prints_a_method_with_its_messages(address: str) -> None:
    text = onelane("describe", address, "Echo/Upload").stdout
    assert "rpc Upload(stream echo.v1.EchoRequest) returns (echo.v1.EchoReply);" in text
    assert "message EchoRequest {\n  string key = 1 [(onelane.v1.key) = true];" in text
    assert "message EchoReply {" in text
    document = json.loads(onelane("describe", address, "echo.v1.EchoReply", "--json").stdout)
    assert [field["name"] for field in document["descriptor"]["field"]] == ["text", "shard", "seen"]


REQUESTS = '{"key": "k", "text": "1"}\n{"key": "k", "text": "2"}'


@pytest.mark.parametrize(
    ("method", "request_text", "texts"),
    [
        ("echo.v1.Echo/Unary", '{"key": "k", "text": "hi"}', ["hi"]),
        ("Download", '{"key": "k", "text": "hi", "times": 2}', ["hi", "hi"]),
        ("Echo.Upload", REQUESTS, ["1,2"]),
        ("/echo.v1.Echo/Chat", REQUESTS, ["1", "2"]),
    ],
)
def test_each_shape_of_method_is_called(address: str, method: str, request_text: str, texts: list[str]) -> None:
    assert [response["text"] for response in called(address, method, request_text)] == texts


def test_a_server_that_knows_nothing_of_onelane_is_called_too(stock_address: str) -> None:
    assert called(stock_address, "Hello", '{"name": "ann"}') == [{"text": "hello ann"}]
    assert called(stock_address, "Everyone", '{"name": "a"}{"name": "b"}') == [{"text": "hello a"}, {"text": "hello b"}]
    run = onelane("call", stock_address, "Hello", "--key", "ann")
    assert "the proto of greeter.v1.Greeter/Hello names no key" in run.stderr


def test_the_key_is_set_in_the_field_that_the_proto_names(address: str) -> None:
    for key in ("k0", "k1", "k2", "k3"):
        owner = called(address, "Unary", "--key", key)[0]
        assert called(address, "Unary", '{"text": "x"}', "--key", key)[0]["seen"] == owner["seen"] + 1
        for method in ("Upload", "Chat"):
            assert called(address, method, "{}", "--key", key)[0]["shard"] == owner["shard"]
    run = onelane("call", address, "Unary", '{"key": "a"}', "--key", "b")
    assert "the key key is 'a' in the JSON, and 'b' by --key" in run.stderr
    assert "--key is given 2 time(s)" in onelane("call", address, "Unary", "-k", "a", "-k", "b").stderr


def test_a_key_is_converted_to_the_type_of_its_field() -> None:
    message = service_pb2.UnaryRequest()
    fill_key(message, ["key"], ["7"])
    assert message.key == 7
    with pytest.raises(Invalid, match="--key x: key is a number"):
        fill_key(service_pb2.UnaryRequest(), ["key"], ["x"])
    with pytest.raises(Invalid, match=r"--key 9999999999: key: "):
        fill_key(service_pb2.UnaryRequest(), ["key"], ["9999999999"])
    nested = service_pb2.BidiStreamRequest()
    fill_key(nested, ["response_definition.response_delay_ms", "request_data"], ["5", "é"])
    assert (nested.response_definition.response_delay_ms, nested.request_data) == (5, "é".encode())


def test_a_status_is_printed_with_its_details_and_is_the_exit_code(address: str) -> None:
    run = onelane("call", address, "Misbehave", '{"key": "k", "order": "rich"}')
    assert (run.exit_code, run.stdout) == (64 + 9, "")
    message, detail = run.stderr.splitlines()
    assert message == "onelane: echo.v1.Echo/Misbehave: FAILED_PRECONDITION: rich"
    assert json.loads(detail)["reason"] == "BECAUSE"
    run = onelane("call", address, "Misbehave", '{"key": "k", "order": "rich"}', "--json")
    last = json.loads(run.stdout.splitlines()[-1])
    assert (last["status"]["code"], last["status"]["number"], run.exit_code) == ("FAILED_PRECONDITION", 9, 73)
    assert last["status"]["details"][0]["domain"] == "tests"
    run = onelane("call", address, "Misbehave", '{"key": "k", "order": "sleep 60"}', "--deadline", "0.05")
    assert (run.exit_code, "DEADLINE_EXCEEDED" in run.stderr) == (64 + 4, True)


def test_metadata_is_sent_and_shown(address: str) -> None:
    headers = ["-H", "x-there: hello: you", "-H", f"x-there-bin: {base64.b64encode(bytes([0, 1])).decode()}"]
    order = '{"key": "k", "order": "metadata"}'
    run = onelane("call", address, "Misbehave", order, *headers, "-v")
    assert "metadata: x-initial: first" in run.stderr.splitlines()
    assert "trailing metadata: x-back: hello: you" in run.stderr.splitlines()
    assert "trailing metadata: x-back-bin: AAE=" in run.stderr.splitlines()


def test_what_a_terminal_would_interpret_is_not_printed(stock_address: str) -> None:
    run = onelane("call", stock_address, "Echo/Unary", "{}")
    assert json.loads(run.stdout)["text"].startswith("\x1b]0;owned")
    assert not {"\x1b", "\x07", "\u202e"} & set(run.stdout)
    run = onelane("call", stock_address, "Misbehave", "{}")
    assert run.stderr.splitlines() == [
        "onelane: echo.v1.Echo/Misbehave: ABORTED: \ufffd[1mbold",
        '  {"@type": "type.googleapis.com/nobody.knows.This"}',
    ]
    assert run.exit_code == 64 + 10


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["Unary", '{"kee": 1}'], 1, 'has no field named "kee"'),
        (["Unary", "{"], 1, "no JSON of echo.v1.EchoRequest"),
        (["Unary", "{}{}"], 1, "the method takes one request, and the JSON has 2"),
        (["Chat", '{"key": "k"} nonsense'], 1, "no JSON of echo.v1.EchoRequest"),
        (["Nothing"], 1, "the server has no method 'Nothing'"),
        (["Unary", "-H", "no colon"], 2, "expected 'name: value'"),
        (["Unary", "-H", "x: snow☃"], 2, "expected printable ASCII"),
        (["Unary", "-H", "x-bin: ?"], 2, "expected base64"),
        (["Unary", "--deadline", "0"], 2, "deadline"),
        (["Unary", "--ca", "missing.pem"], 2, "does not exist"),
        (["Unary", "--tls"], 1, "cannot be asked"),
    ],
)
def test_a_mistake_is_one_sentence(address: str, arguments: list[str], code: int, sentence: str) -> None:
    run = onelane("call", address, *arguments)
    assert (run.exit_code, sentence in run.stderr, "Traceback" in run.stderr) == (code, True, False), run.stderr


def test_an_address_that_is_none_or_has_no_server_is_one_sentence() -> None:
    assert onelane("ls", "ftp://x:1").exit_code == 2
    run = onelane("ls", ":1")
    assert (run.exit_code, "127.0.0.1:1: " in run.stderr) == (1, True)


def test_what_may_be_missing_is_named_only_where_it_is() -> None:
    hint = "(a server with TLS needs --tls or --ca)"
    assert [hint in onelane("ls", ":1", *arguments).stderr for arguments in ([], ["--tls"])] == [True, False]


async def test_the_page_is_told_of_no_flag_of_the_command_line() -> None:
    server = RemoteServer("127.0.0.1:1", (), False, None, None, None, False, "", names_flags=False)
    with pytest.raises(Transient) as refused:
        async with server.connected() as (_, reflection):
            await reflection.services()
    assert "127.0.0.1:1 cannot be asked" in str(refused.value)
    assert "--" not in str(refused.value)


def test_mutual_tls_needs_the_authority_and_the_certificate(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.issue("client", "client")
    own = ["--cert", files.path("client.pem"), "--cert-key", files.path("client.key")]
    with stock(tls=files) as listening:
        trusted = ["--ca", files.path("ca.pem")]
        assert called(listening, "Hello", '{"name": "ann"}', *trusted, *own) == [{"text": "hello ann"}]
        assert called(listening, "Hello", '{"name": "ann"}', "--insecure", *own) == [{"text": "hello ann"}]
        assert "CERTIFICATE_VERIFY_FAILED" in onelane("ls", listening, *own).stderr
        assert "--cert-key is the key of --cert" in onelane("ls", listening, *own[2:]).stderr


@contextmanager
def typing(address: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`onelane call` that reads its requests from a pipe."""
    command = [sys.executable, "-m", "onelane", "call", address, *arguments, "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_requests_are_sent_as_they_are_typed_and_ctrl_c_ends_the_call(address: str) -> None:
    with typing(address, "Chat", "--key", "k", "--json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("1", "2"):
            process.stdin.write(f'{{"text": "{text}"}}')
            process.stdin.flush()
            lines = iter(process.stdout.readline, "")
            response = next(line for line in map(json.loads, lines) if "response" in line)
            assert response["response"]["text"] == text
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND_S) == 130


def test_a_call_that_the_server_ends_does_not_wait_for_standard_input(address: str) -> None:
    with typing(address, "Upload", "--key", "k") as process:
        assert process.stdin is not None
        process.stdin.write('{"order": "abort"}')
        process.stdin.flush()
        assert process.wait(BOUND_S) == 64 + 5
        assert process.stderr is not None
        assert "NOT_FOUND" in process.stderr.read()


def test_fields_with_default_values_are_printed_if_asked_for(stock_address: str) -> None:
    assert json.loads(onelane("call", stock_address, "Echo/Unary", "--defaults").stdout)["seen"] == 0
