"""grpcio's call credentials (`grpc.CallCredentials`): the metadata that their plugins give for each call.

A plugin may block, as where it asks for a token, and may answer on any thread. So it runs on a thread of the loop's
default executor, as grpcio runs it on a thread of its own, and the call is sent once every plugin has answered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from onelane.wire.framing import BadWire, Headers, write_metadata

Plugin = Callable[[bytes, bytes, Callable[[Any, Any, Any], None]], None]
"""Takes the URL of the service, the name of the method, and what to call with metadata, a status and its details."""


class CredentialsFailed(Exception):
    """A plugin has given no metadata, or none that can be sent."""


def plugins_of(credentials: grpc.CallCredentials) -> list[Plugin]:
    """The plugins of call credentials, in their order.

    Raises:
        TypeError: they are not of `grpc.metadata_call_credentials` or what is made of it.
    """
    return list(_plugins(credentials._credentials))  # type: ignore[attr-defined]


def _plugins(credentials: Any) -> Iterator[Plugin]:
    # grpcio has no public way to ask credentials for their plugins.
    if isinstance(credentials, cygrpc.CompositeCallCredentials):
        for part in credentials._call_credentialses:
            yield from _plugins(part)
    elif isinstance(credentials, cygrpc.MetadataPluginCallCredentials):
        yield credentials._metadata_plugin
    else:
        raise TypeError(
            f"call credentials of {type(credentials).__name__}: only those with a metadata plugin are known"
        )


async def headers_from(plugins: list[Plugin], authority: bytes, path: bytes) -> Headers:
    """What the plugins add to the headers of a call. path: `/pkg.Service/Method`.

    Raises:
        CredentialsFailed: one of them has failed.
    """
    service, _, method = path.rpartition(b"/")
    headers: Headers = []
    for plugin in plugins:
        metadata = await _ask(plugin, b"https://" + authority.removesuffix(b":443") + service, method)
        try:
            headers += write_metadata(metadata or ())
        except BadWire as error:
            raise CredentialsFailed(f"Illegal metadata: {error}") from error
    return headers


async def _ask(plugin: Plugin, url: bytes, method: bytes) -> Any:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def answered(metadata: Any, code: Any, details: Any) -> None:
        loop.call_soon_threadsafe(_settle, answer, metadata, code, details)

    # On a thread; it carries the context of the place where the credentials were made itself.
    await loop.run_in_executor(None, plugin, url, method, answered)
    return await answer


def _settle(answer: "asyncio.Future[Any]", metadata: Any, code: Any, details: Any) -> None:
    if answer.done():
        return
    if code == cygrpc.StatusCode.ok:
        answer.set_result(metadata)
    else:
        text = details.decode("utf-8", "replace") if isinstance(details, bytes) else details
        answer.set_exception(CredentialsFailed(f"Getting metadata from plugin failed with error: {text}"))


async def headers_after(wait: Callable[[], Awaitable[None]], headers: Callable[[], Awaitable[Headers]]) -> Headers:
    """What `headers` returns, once `wait` is done."""
    await wait()
    return await headers()


async def no_headers() -> Headers:
    """Of a call that only waits."""
    return []
