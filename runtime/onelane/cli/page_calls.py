"""What the console of the admin page asks of an app, in a process of its own: the supervisor loads no client.

`python -m onelane.cli.page_calls` reads one JSON object from standard input: the address of the app, and `methods` or
`call`. It prints JSON, one object a line: the methods with the types of their requests; or what the call brings, as
`onelane call --json` prints it, and the seconds that it took. A last line `fault` says why there is nothing else.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from onelane.cli import calling
from onelane.cli.message_json import MessagesAsJson
from onelane.cli.methods_of_server import line_of, listed, method_named, path_of
from onelane.cli.remote import Printer, RemoteServer, metadata_items, request_texts
from onelane.errors import OnelaneError

MAX_TYPES = 1000
"""Types of requests that are described."""
FIELD_TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def main() -> None:
    """See the module."""
    question = json.load(sys.stdin.buffer)
    try:
        asyncio.run(_answer(question))
    except OnelaneError as error:
        _print({"fault": str(error)})
    except click.ClickException as error:
        _print({"fault": error.format_message()})


async def _answer(question: dict[str, Any]) -> None:
    # The supervisor holds the socket that listens there, whatever its certificate says.
    is_tls = bool(question["tls"])
    metadata = metadata_items(question["metadata"])
    server = RemoteServer(question["address"], metadata, is_tls, None, None, None, is_tls, "", names_flags=False)
    if "call" in question:
        await _call(server, **question["call"])
    else:
        await _methods(server)


async def _methods(server: RemoteServer) -> None:
    async with server.connected() as (_, reflection):
        methods = await listed(reflection, None, is_all=False)
    requests = {method.input_type.full_name: method.input_type for method in methods}
    _print({"methods": [asdict(line_of(method)) for method in methods], **types_of(requests.values())})


async def _call(server: RemoteServer, method: str, request: str, deadline_s: float) -> None:
    printer = Printer(as_json=True, verbose=False)
    async with server.connected() as (channel, reflection):
        descriptor = await method_named(reflection, method)
        begun = time.monotonic()
        outcome = await calling.call(
            calling.RemoteMethod(channel, descriptor, reflection.pool),
            request_texts(request, is_stream=descriptor.client_streaming),
            key=(),
            metadata=server.metadata,
            timeout_s=deadline_s,
            as_json=MessagesAsJson(reflection, with_defaults=True),
            printer=printer,
        )
        _print({"seconds": time.monotonic() - begun})
        printer.ended(path_of(descriptor), outcome)


def types_of(messages: Iterable[Descriptor]) -> dict[str, Any]:
    """The fields of these messages and of those that they contain, and the values of their enums, by full name."""
    types: dict[str, Any] = {}
    enums: dict[str, dict[str, int]] = {}
    waiting = list(messages)
    while waiting and len(types) < MAX_TYPES:
        message = waiting.pop()
        if message.full_name in types:
            continue
        types[message.full_name] = [_field(field) for field in message.fields]
        waiting += [field.message_type for field in message.fields if field.message_type is not None]
        for kind in (field.enum_type for field in message.fields if field.enum_type is not None):
            enums[kind.full_name] = {value.name: value.number for value in kind.values}
    return {"types": types, "enums": enums}


def _field(field: FieldDescriptor) -> dict[str, Any]:
    composite = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return {
        "name": field.name,
        "type": FIELD_TYPES[field.type],
        "of": composite.full_name if composite is not None else "",
        "is_repeated": field.is_repeated,
        # `optional` of proto3 is a oneof of one field.
        "oneof": oneof.name if oneof is not None and len(oneof.fields) > 1 else "",
    }


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
