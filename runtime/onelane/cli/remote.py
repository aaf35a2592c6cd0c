"""`onelane ls`, `describe` and `call`: the methods of any gRPC server that serves reflection, and calls to them."""

import asyncio
import base64
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onelane.cli.arguments import JSON, reporting_errors
from onelane.errors import Invalid

if TYPE_CHECKING:
    from onelane.cli.calling import CallOutcome, MetadataItems
    from onelane.cli.reflection import Reflection
    from onelane.client.channel import NativeChannel

T = TypeVar("T")
STATUS_EXIT = 64
"""The exit code of a call that ends with status n is this and n, as grpcurl's."""
INTERRUPTED = 130
MAX_RESPONSE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """The server that a command asks, and what it shows there."""

    address: str
    metadata: tuple[tuple[str, str | bytes], ...]
    is_tls: bool
    ca: Path | None
    cert: Path | None
    cert_key: Path | None
    is_insecure: bool
    authority: str
    names_flags: bool = True
    """Errors may name flags of the command line."""

    @asynccontextmanager
    async def connected(self) -> "AsyncIterator[tuple[NativeChannel, Reflection]]":
        """A channel to it, and its descriptors."""
        from onelane.cli.reflection import Reflection
        from onelane.client.channel import NativeChannel
        from onelane.client.options import Dialling

        tls = self._context() if self.is_tls else None
        dialling = Dialling(tls=tls, authority=self.authority, max_message_bytes=MAX_RESPONSE_BYTES)
        try:
            channel = NativeChannel(_with_host(self.address), dialling)
        except ValueError as error:
            raise click.BadParameter(f"{self.address}: {error}", param_hint="ADDRESS") from error
        async with channel:
            hint = " (a server with TLS needs --tls or --ca)" if self.names_flags and not self.is_tls else ""
            yield channel, Reflection(channel, self.address, self.metadata, hint)

    def _context(self) -> Any:
        import ssl

        from onelane.client.tls import client_context

        try:
            context = client_context(ca=self.ca, cert=self.cert, key=self.cert_key)
        except OSError as error:
            raise Invalid(f"the certificates cannot be used: {error.strerror or error}") from error
        if self.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _with_host(address: str) -> str:
    return f"127.0.0.1{address}" if re.fullmatch(r":\d+", address) else address


def _metadata(_: click.Context, __: click.Parameter, headers: tuple[str, ...]) -> "MetadataItems":
    return metadata_items(headers)


def metadata_items(headers: Iterable[str]) -> "tuple[tuple[str, str | bytes], ...]":
    """`name: value` of each; the value of a name that ends in -bin is base64.

    Raises:
        click.BadParameter: one is none.
    """
    items: list[tuple[str, str | bytes]] = []
    for header in headers:
        name, colon, value = header.partition(":")
        name, text = name.strip().lower(), value.strip()
        if not colon or not re.fullmatch(r"[0-9a-z_.-]+", name):
            raise click.BadParameter(f"{header!r}: expected 'name: value'")
        if not name.endswith("-bin"):
            if not re.fullmatch(r"[\x20-\x7e]*", text):
                raise click.BadParameter(f"{header!r}: expected printable ASCII; other values have a name in -bin")
            items.append((name, text))
            continue
        try:
            items.append((name, base64.b64decode(text + "=" * (-len(text) % 4), validate=True)))
        except ValueError as error:
            raise click.BadParameter(f"{header!r}: expected base64, as its name ends in -bin") from error
    return tuple(items)


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = [
    click.option("-H", "--header", "metadata", multiple=True, callback=_metadata, metavar="'NAME: VALUE'",
                 help="Metadata to send, also to reflection; of a name in -bin the value is base64."),
    click.option("--tls", "is_tls", is_flag=True, help="Connect by TLS; so do the four options that follow."),
    click.option("--ca", type=_FILE, help="PEM file of the authorities to trust, instead of the system's."),
    click.option("--cert", type=_FILE, help="PEM file of this client's certificate, for mutual TLS."),
    click.option("--cert-key", type=_FILE, help="PEM file of the private key of --cert."),
    click.option("--insecure", "is_insecure", is_flag=True, help="Do not verify the server's certificate."),
    click.option("--authority", default="", help="The name to ask for, and that the certificate must have."),
]  # fmt: skip


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the argument ADDRESS and the options on how to connect, as the parameter `target`."""

    @wraps(command)
    def run(address: str, metadata: Any, is_tls: bool, ca: Any, cert: Any, cert_key: Any, is_insecure: bool,
            authority: str, **others: Any) -> Any:  # fmt: skip
        if (cert_key is not None) and cert is None:
            raise click.UsageError("--cert-key is the key of --cert, which is not given")
        has_tls = is_tls or is_insecure or ca is not None or cert is not None
        return command(RemoteServer(address, metadata, has_tls, ca, cert, cert_key, is_insecure, authority), **others)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


_ADDRESS = click.argument("address", metavar="ADDRESS")


@click.command("ls")
@_ADDRESS
@click.argument("service", required=False)
@click.option("--all", "is_all", is_flag=True, help="Also the services for programs: grpc.* and onelane.v1.*.")
@asking
@JSON
@reporting_errors
def ls(target: RemoteServer, service: str | None, is_all: bool, as_json: bool) -> None:
    """List the methods of the gRPC server at ADDRESS (host:port), or of its SERVICE, by reflection.

    With each: whether requests and responses are streams, their types, and the fields of its key.
    """
    from onelane.cli.methods_of_server import line_of, listed

    async def ask() -> list[Any]:
        async with target.connected() as (_, reflection):
            return [line_of(method) for method in await listed(reflection, service, is_all=is_all)]

    lines = _run(ask())
    if as_json:
        click.echo(json.dumps({"methods": [asdict(line) for line in lines]}, indent=2))
        return
    from onelane.cli.listing import Column, Listing
    from onelane.cli.standard_streams import console

    columns = [Column("method", False), Column("kind", False), Column("request", False, rank=2)]
    listing = Listing([*columns, Column("response", False, rank=3), Column("key", False, rank=1)])
    for line in lines:
        listing.add(*map(_printable, (line.name, line.kind, line.request, line.response, line.key)))
    listing.show(console())


@click.command()
@_ADDRESS
@click.argument("symbol")
@asking
@JSON
@reporting_errors
def describe(target: RemoteServer, symbol: str, as_json: bool) -> None:
    """Print the declaration of SYMBOL: a service, a method with its messages, a message or an enum."""
    from google.protobuf import json_format
    from google.protobuf.descriptor import MethodDescriptor

    from onelane.cli.methods_of_server import symbol_named
    from onelane.cli.proto_text import text_of

    async def ask() -> Any:
        async with target.connected() as (_, reflection):
            return await symbol_named(reflection, symbol)

    descriptor = _run(ask())
    if as_json:
        click.echo(
            json.dumps({"name": descriptor.full_name, "descriptor": json_format.MessageToDict(_proto(descriptor))})
        )
        return
    parts = [descriptor]
    if isinstance(descriptor, MethodDescriptor):
        parts += dict.fromkeys((descriptor.input_type, descriptor.output_type))
    click.echo("\n\n".join(f"// {part.full_name}\n{text_of(part)}" for part in parts))


def _proto(descriptor: Any) -> Any:
    from google.protobuf import descriptor_pb2

    kind = type(descriptor).__name__.removeprefix("_").removesuffix("Descriptor") or "Message"
    proto = getattr(descriptor_pb2, "DescriptorProto" if kind == "Message" else f"{kind}DescriptorProto")()
    descriptor.CopyToProto(proto)
    return proto


@click.command()
@_ADDRESS
@click.argument("method")
@click.argument("requests", metavar="[JSON]", required=False)
@click.option(
    "-k",
    "--key",
    multiple=True,
    metavar="VALUE",
    help="The key, set in the field that the proto names; once for each field of a key of several.",
)
@click.option(
    "--deadline", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="By default there is none."
)
@click.option("--defaults", is_flag=True, help="Print fields with their default values too.")
@click.option("-v", "--verbose", is_flag=True, help="Print metadata and trailing metadata to standard error.")
@asking
@JSON
@reporting_errors
def call(
    target: RemoteServer,
    method: str,
    requests: str | None,
    key: tuple[str, ...],
    deadline: float | None,
    defaults: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Call METHOD (pkg.Service/Method, or an end of it) of the server at ADDRESS, and print its responses as JSON.

    JSON is the request; for a request stream one after the other; - reads them from standard input, and sends each as
    it comes. Without it a unary method gets {}, and a request stream is empty.

    With --json each line is an object: metadata, response, then status. A status n other than OK makes the exit code
    64 + n.
    """
    printer = Printer(as_json=as_json, verbose=verbose)

    async def ask() -> "tuple[str, CallOutcome]":
        from onelane.cli import calling
        from onelane.cli.message_json import MessagesAsJson
        from onelane.cli.methods_of_server import method_named, path_of

        async with target.connected() as (channel, reflection):
            descriptor = await method_named(reflection, method)
            outcome = await calling.call(
                calling.RemoteMethod(channel, descriptor, reflection.pool),
                request_texts(requests, is_stream=descriptor.client_streaming),
                key=key,
                metadata=target.metadata,
                timeout_s=deadline,
                as_json=MessagesAsJson(reflection, with_defaults=defaults),
                printer=printer,
            )
            return path_of(descriptor)[1:], outcome

    name, outcome = _run(ask())
    printer.ended(name, outcome)
    number = outcome.code.value[0]
    sys.exit(STATUS_EXIT + number if number else 0)


class Printer:
    """See `calling.AnswerPrinter`."""

    def __init__(self, *, as_json: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._is_verbose = verbose

    def headers(self, metadata: "MetadataItems") -> None:
        self._metadata("metadata", metadata)

    def response(self, document: Any) -> None:
        if self._as_json:
            click.echo(json.dumps({"response": document}))
        else:
            click.echo(_printable(json.dumps(document, indent=2, ensure_ascii=False)))

    def ended(self, method: str, outcome: "CallOutcome") -> None:
        if self._as_json:
            status = {"code": outcome.code.name, "number": outcome.code.value[0], "message": outcome.details}
            trailers = _shown(outcome.trailing_metadata)
            click.echo(json.dumps({"status": {**status, "details": outcome.rich}, "trailing_metadata": trailers}))
            return
        self._metadata("trailing metadata", outcome.trailing_metadata)
        if outcome.code.value[0]:
            click.echo(_printable(f"onelane: {method}: {outcome.code.name}: {outcome.details}"), err=True)
        for detail in outcome.rich:
            click.echo(_printable(f"  {json.dumps(detail, ensure_ascii=False)}"), err=True)

    def _metadata(self, title: str, metadata: "MetadataItems") -> None:
        if self._as_json and title == "metadata":
            click.echo(json.dumps({"metadata": _shown(metadata)}))
        elif self._is_verbose and not self._as_json:
            for name, value in _shown(metadata):
                click.echo(_printable(f"{title}: {name}: {value}"), err=True)


def _shown(metadata: "MetadataItems") -> list[tuple[str, str]]:
    return [(name, base64.b64encode(v).decode() if isinstance(v, bytes) else v) for name, v in metadata]


def _printable(text: str) -> str:
    from onelane.core.printable import replaced

    return replaced(text)


async def request_texts(requests: str | None, *, is_stream: bool) -> AsyncIterator[str]:
    """The JSON of each request."""
    from onelane.cli.json_stream import JsonValues, standard_input

    if requests is None and not is_stream:
        yield "{}"
    elif requests == "-":
        async for text in standard_input():
            yield text
    elif requests is not None:
        values = JsonValues()
        for text in (*values.feed(requests), *values.finish()):
            yield text


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Its outcome; Ctrl-C ends the command."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
