"""Reflection of servers of all kinds: grpcio's own in both versions, ones that send little, and ones that lie."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from onelane.cli import reflection
from onelane.cli.message_json import MessagesAsJson
from onelane.cli.methods_of_server import key_paths, line_of, listed, method_named, symbol_named
from onelane.cli.proto_text import text_of
from onelane.cli.reflection import NoReflection, Reflection
from onelane.client.channel import dial
from onelane.errors import Invalid, NotThere, OnelaneError, Transient

from tests.conformance.v1 import service_pb2
from tests.echo.v1 import echo_pb2
from tests.greeter.v1 import greeter_pb2
from tests.ports import reserved

ECHO_FILE = echo_pb2.DESCRIPTOR.name
Answer = Callable[[ServerReflectionRequest], ServerReflectionResponse | None]


class ReflectionHandlers(grpc.GenericRpcHandler):
    """The reflection of these versions alone, and nothing else."""

    def __init__(self, versions: Sequence[str], behaviour: Any) -> None:
        self._paths = {f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in versions}
        self._handler = grpc.stream_stream_rpc_method_handler(
            behaviour, ServerReflectionRequest.FromString, ServerReflectionResponse.SerializeToString
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method in self._paths else None


@asynccontextmanager
async def asking(behaviour: Any, *versions: str, metadata: Any = ()) -> AsyncIterator[Reflection]:
    """The reflection of a grpcio server whose method is `behaviour`."""
    server = grpc.aio.server(handlers=[ReflectionHandlers(versions or ("v1",), behaviour)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with dial(f"127.0.0.1:{port}") as channel:
            yield Reflection(channel, "the server", metadata)
    finally:
        await server.stop(None)


def grpcios(*names: str) -> Any:
    return reflection_aio.ReflectionServicer(names).ServerReflectionInfo


def answering(answer: Answer) -> Any:
    """A method that answers each request by a function; without an answer it ends."""

    async def behaviour(requests: AsyncIterator[ServerReflectionRequest], context: Any) -> Any:
        async for request in requests:
            if (response := answer(request)) is None:
                return
            yield response

    return behaviour


def files(*protos: Any) -> ServerReflectionResponse:
    texts = [proto if isinstance(proto, bytes) else proto.SerializeToString() for proto in protos]
    response = reflection_pb2.FileDescriptorResponse(file_descriptor_proto=texts)
    return ServerReflectionResponse(file_descriptor_response=response)


def proto_of(descriptor: Any) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto


@pytest.mark.parametrize("versions", [("v1",), ("v1alpha",), ("v1", "v1alpha")])
async def test_a_stock_server_is_asked_in_the_version_that_it_has(versions: tuple[str, ...]) -> None:
    async with asking(grpcios("greeter.v1.Greeter"), *versions) as asked:
        lines = [line_of(method) for method in await listed(asked, None, is_all=False)]
    assert [(line.name, line.kind, line.key) for line in lines] == [
        ("greeter.v1.Greeter/Hello", "unary", ""),
        ("greeter.v1.Greeter/Everyone", "bidi-streaming", ""),
    ]


async def test_a_server_without_reflection_is_told_from_one_that_is_not_there() -> None:
    async with asking(grpcios(), "v0") as asked:
        with pytest.raises(NoReflection, match="the server serves no reflection"):
            await asked.services()
    with reserved() as port:
        async with dial(f"127.0.0.1:{port}") as channel:
            with pytest.raises(Transient, match="the server cannot be asked: failed to connect"):
                await Reflection(channel, "the server", ()).services()


async def test_the_options_of_onelane_say_which_field_is_the_key() -> None:
    async with asking(grpcios("echo.v1.Echo")) as asked:
        methods = {method.name: method for method in await listed(asked, "Echo", is_all=False)}
    assert key_paths(methods["Unary"]) == ("key",)
    assert line_of(methods["Who"]).key == "ANY"


async def test_imports_that_were_not_sent_along_are_asked_for() -> None:
    """As servers in C++, Go and Java do it; options.proto and Google's own may be unknown to them."""
    asked_for = []

    def answer(request: ServerReflectionRequest) -> ServerReflectionResponse:
        asked_for.append(request.file_by_filename or request.file_containing_symbol)
        if request.file_containing_symbol:
            return files(proto_of(service_pb2.DESCRIPTOR))
        error = reflection_pb2.ErrorResponse(error_code=5, error_message="not found")
        return ServerReflectionResponse(error_response=error)

    async with asking(answering(answer)) as asked:
        await asked.load("connectrpc.conformance.v1.ConformanceService")
    assert "google/protobuf/any.proto" in asked_for
    assert "onelane/v1/options.proto" in asked_for
    assert asked.pool.FindMessageTypeByName("google.protobuf.Any").fields


def importing(name: str, *imports: str) -> FileDescriptorProto:
    return FileDescriptorProto(name=name, package="p", dependency=imports, syntax="proto3")


def endless(request: ServerReflectionRequest) -> ServerReflectionResponse:
    """Each file imports the next one."""
    number = int(request.file_by_filename or 0)
    return files(importing(str(number), str(number + 1)))


CIRCLE = files(importing("a", "b"), importing("b", "a"))
TWICE = importing("a")
TWICE.message_type.add(name="M")
TWICE.message_type.add(name="M")
SECRET = reflection_pb2.ErrorResponse(error_code=7, error_message="not for you")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda _: None, "it ends without an answer"),
        (lambda _: ServerReflectionResponse(), "it answers another question"),
        (lambda _: ServerReflectionResponse(error_response=SECRET), "it refuses: not for you"),
        (lambda _: files(b"\xff"), "it sends a descriptor that is none"),
        (lambda _: files(importing("a", "b")), "asked for the file 'b', it sends"),
        (lambda _: CIRCLE, "its descriptors do not fit together"),
        (lambda _: files(TWICE), "its descriptors do not fit together"),
        (endless, "it has more than 20 files"),
    ],
    ids=["ends", "empty", "refuses", "garbage", "other file", "circle", "twice", "endless"],
)
async def test_a_server_that_lies_gets_one_sentence(
    answer: Answer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflection, "MAX_FILES", 20)
    async with asking(answering(answer)) as asked:
        with pytest.raises(NoReflection, match=f"the reflection of the server cannot be used: {fault}"):
            await asked.load("p.S")


async def test_an_import_that_nobody_knows_is_named() -> None:
    def answer(request: ServerReflectionRequest) -> ServerReflectionResponse:
        if request.file_containing_symbol:
            return files(importing("a", "secret.proto"))
        return ServerReflectionResponse(error_response=reflection_pb2.ErrorResponse(error_code=5))

    async with asking(answering(answer)) as asked:
        with pytest.raises(NoReflection, match=r"it does not know the file 'secret\.proto', which another one imports"):
            await asked.load("p.S")


async def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "REFLECTION_S", 0.05)

    async def wait(requests: AsyncIterator[Any], context: Any) -> Any:
        await asyncio.Event().wait()
        yield

    async with asking(wait) as asked:
        with pytest.raises(Transient, match=r"the server has not answered within 0\.05 s"):
            await asked.services()


async def test_a_server_that_wants_credentials_gets_the_metadata_or_says_so() -> None:
    async def guarded(requests: AsyncIterator[Any], context: Any) -> Any:
        if ("authorization", "Bearer sesame") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token, please")
        async for response in grpcios("echo.v1.Echo")(requests, context):
            yield response

    async with asking(guarded) as asked:
        with pytest.raises(Transient, match="does not describe its services: UNAUTHENTICATED: a token, please"):
            await asked.services()
    async with asking(guarded, metadata=(("authorization", "Bearer sesame"),)) as asked:
        assert await asked.services() == ["echo.v1.Echo"]


async def test_a_service_that_is_listed_and_not_described_is_one_sentence() -> None:
    async with asking(grpcios("echo.v1.Ghost", "echo.v1.EchoRequest")) as asked:
        with pytest.raises(NotThere, match=r"the server does not know 'echo\.v1\.Ghost'"):
            await listed(asked, "Ghost", is_all=False)
        with pytest.raises(Invalid, match=r"lists 'echo\.v1\.EchoRequest', and describes no such service"):
            await listed(asked, "EchoRequest", is_all=False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Echo/Unari", r"echo\.v1\.Echo has no method 'Unari'; did you mean 'Unary'\?"),
        ("Echoo/Unary", "the server has no service 'Echoo'; "),
        ("Hello", r"several services have a method 'Hello': greeter\.v1\.Greeter/Hello, other"),
    ],
)
async def test_a_name_that_is_none_or_several_is_answered_with_those_that_are_near(text: str, fault: str) -> None:
    other = FileDescriptorProto(name="other.proto", package="other", dependency=[greeter_pb2.DESCRIPTOR.name])
    service = other.service.add(name="Greeter")
    request, response = ".greeter.v1.HelloRequest", ".greeter.v1.HelloReply"
    service.method.add(name="Hello", input_type=request, output_type=response)
    names = ["echo.v1.Echo", "greeter.v1.Greeter", "other.Greeter"]
    described = {"echo.v1.Echo": proto_of(echo_pb2.DESCRIPTOR), "other.Greeter": other}

    def answer(request: ServerReflectionRequest) -> ServerReflectionResponse:
        if request.HasField("list_services"):
            services = [reflection_pb2.ServiceResponse(name=name) for name in names]
            return ServerReflectionResponse(list_services_response=reflection_pb2.ListServiceResponse(service=services))
        if request.file_by_filename:
            return ServerReflectionResponse(error_response=reflection_pb2.ErrorResponse(error_code=5))
        greeter = proto_of(greeter_pb2.DESCRIPTOR)
        return files(described.get(request.file_containing_symbol, greeter), greeter)

    async with asking(answering(answer)) as asked:
        with pytest.raises(OnelaneError, match=fault):
            await method_named(asked, text)
        assert (await method_named(asked, "other.Greeter.Hello")).full_name == "other.Greeter.Hello"
        assert (await method_named(asked, "/echo.v1.Echo/Unary")).full_name == "echo.v1.Echo.Unary"


async def test_the_type_of_an_any_is_asked_for_and_of_one_that_nobody_knows_the_name_is_shown() -> None:
    async with asking(grpcios("echo.v1.Echo")) as asked:
        await asked.load("google.protobuf.Any")
        as_json = MessagesAsJson(asked, with_defaults=False)
        known = any_pb2.Any()
        known.Pack(echo_pb2.EchoReply(text="hi"))
        assert await as_json.json_of(known) == {"@type": "type.googleapis.com/echo.v1.EchoReply", "text": "hi"}
        unknown = any_pb2.Any(type_url="type.googleapis.com/secret.v1.Thing", value=b"\x0a\x01x")
        assert await as_json.json_of(unknown) == {"@type": "type.googleapis.com/secret.v1.Thing"}
        for broken in (any_pb2.Any(type_url="x/echo.v1.EchoReply", value=b"\xff"), any_pb2.Any(type_url="x/\n;")):
            with pytest.raises(Invalid, match="has no JSON"):
                await as_json.json_of(broken)
        with pytest.raises(Invalid, match="has no JSON"):
            await as_json.json_of(timestamp_pb2.Timestamp(seconds=2**60))


async def test_a_declaration_is_printed_as_a_proto_has_it() -> None:
    async with asking(grpcios("connectrpc.conformance.v1.ConformanceService", "echo.v1.Echo")) as asked:
        service = text_of(await symbol_named(asked, "ConformanceService"))
        message = text_of(await symbol_named(asked, "connectrpc.conformance.v1.UnaryResponseDefinition"))
        error = text_of(await symbol_named(asked, "connectrpc.conformance.v1.Error"))
        enum = text_of(await symbol_named(asked, "connectrpc.conformance.v1.Code")).splitlines()
        method = text_of(await symbol_named(asked, "echo.v1.Echo/Who"))
        request = text_of(await symbol_named(asked, "echo.v1.EchoRequest")).splitlines()
        with pytest.raises(NotThere, match=r"does not know 'nothing\.Such'"):
            await symbol_named(asked, "nothing.Such")
    prefix = "connectrpc.conformance.v1."
    assert f"  rpc ClientStream(stream {prefix}ClientStreamRequest) returns ({prefix}ClientStreamResponse);" in service
    assert f"  oneof response {{\n    bytes response_data = 2;\n    {prefix}Error error = 3;\n  }}\n" in message
    assert f"  repeated {prefix}Header response_headers = 1;\n" in message
    assert "  optional string message = 2;\n  repeated google.protobuf.Any details = 3;\n" in error
    assert enum[:2] == ["enum Code {", "  CODE_UNSPECIFIED = 0;"]
    assert "  option (onelane.v1.route) = ANY;\n" in method
    assert request[1] == "  string key = 1 [(onelane.v1.key) = true];"
