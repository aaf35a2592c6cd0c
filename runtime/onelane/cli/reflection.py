"""What a server says of itself by gRPC server reflection: the names of its services, and the descriptors of its protos.

Promises: v1 is asked first, then v1alpha, whose messages are the same; files that are imported, and not sent along,
are asked for; what a server sends is bounded in number and size, and does not touch the descriptors of this process.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from onelane.cli.known_protos import fill, known_file, known_file_of
from onelane.errors import Invalid, NotThere, Transient

REFLECTION_PATHS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
REFLECTION_S = 10.0
"""How long each question may take, with the connection before it."""
MAX_FILES = 10_000
"""Protos of one server, with those that they import."""


class NoReflection(Invalid):
    """The server has no service for reflection, or its answers cannot be used."""


class Reflection:
    """The descriptors of one server. Owned by the loop that its channel runs in."""

    def __init__(
        self, channel: grpc.aio.Channel, address: str, metadata: Sequence[tuple[str, str | bytes]], hint: str = ""
    ) -> None:
        """hint: added where the server is not reached."""
        self._hint = hint
        self._channel = channel
        self._address = address
        self._metadata = metadata
        self._path = REFLECTION_PATHS[0]
        self._files: dict[str, FileDescriptorProto] = {}
        self._added: set[str] = set()
        self.pool = descriptor_pool.DescriptorPool()
        """What has been loaded."""

    async def services(self) -> list[str]:
        """The full names of all services.

        Raises:
            NoReflection, Transient: as `load`.
        """
        answer = await self._ask(ServerReflectionRequest(list_services=""))
        if not answer.HasField("list_services_response"):
            raise self._unusable("it lists no services")
        return sorted({service.name for service in answer.list_services_response.service})

    async def load(self, symbol: str) -> None:
        """Have the file of a service, method or type in the pool, and all that it imports.

        Raises:
            NotThere: the server does not know it.
            NoReflection: it serves no reflection, or its descriptors cannot be used.
            Transient: it does not answer.
        """
        try:
            files = await self._files_of(ServerReflectionRequest(file_containing_symbol=symbol))
        except NotThere:
            if (known := known_file_of(symbol)) is None:
                raise
            files = [known]
        await self._add_with_imports(files)

    async def _add_with_imports(self, files: Iterable[FileDescriptorProto]) -> None:
        self._keep(files)
        while missing := {name for file in self._files.values() for name in file.dependency} - set(self._files):
            for name in sorted(missing):
                if name not in self._files:
                    self._keep(await self._imported(name))
        self._fill_pool()

    async def _imported(self, name: str) -> list[FileDescriptorProto]:
        """The file of this name, and those that are sent along with it."""
        try:
            files = await self._files_of(ServerReflectionRequest(file_by_filename=name))
        except NotThere as error:
            known = known_file(name)
            if known is None:
                raise self._unusable(f"it does not know the file {name!r}, which another one imports") from error
            return [known]
        if name not in {file.name for file in files}:
            raise self._unusable(f"asked for the file {name!r}, it sends {sorted(file.name for file in files)}")
        return files

    def _keep(self, files: Iterable[FileDescriptorProto]) -> None:
        for file in files:
            self._files.setdefault(file.name, file)
        if len(self._files) > MAX_FILES:
            raise self._unusable(f"it has more than {MAX_FILES} files")

    def _fill_pool(self) -> None:
        try:
            fill(self.pool, self._files, self._added)
        except Invalid as error:
            raise self._unusable(str(error)) from error

    async def _files_of(self, request: ServerReflectionRequest) -> list[FileDescriptorProto]:
        answer = await self._ask(request)
        if not answer.HasField("file_descriptor_response"):
            raise self._unusable("it answers another question than it was asked")
        try:
            return [
                FileDescriptorProto.FromString(text) for text in answer.file_descriptor_response.file_descriptor_proto
            ]
        except DecodeError as error:
            raise self._unusable(f"it sends a descriptor that is none: {error}") from error

    async def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Raises:
        NotThere: the server does not know what it is asked for.
        NoReflection, Transient: as `load`.
        """
        try:
            answer = await self._ask_by(self._path, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED or self._path == REFLECTION_PATHS[-1]:
                raise self._failure(error) from error
            self._path = REFLECTION_PATHS[-1]
            return await self._ask(request)
        if answer.HasField("error_response"):
            refusal = answer.error_response
            if refusal.error_code == grpc.StatusCode.NOT_FOUND.value[0]:
                wanted = request.file_containing_symbol or request.file_by_filename
                raise NotThere(f"{self._address} does not know {wanted!r}")
            raise self._unusable(f"it refuses: {refusal.error_message}")
        return answer

    async def _ask_by(self, path: str, request: ServerReflectionRequest) -> ServerReflectionResponse:
        method: Any = self._channel.stream_stream(
            path, ServerReflectionRequest.SerializeToString, ServerReflectionResponse.FromString
        )
        call = method(iter([request]), timeout=REFLECTION_S, metadata=self._metadata)
        answer = await call.read()
        if not isinstance(answer, ServerReflectionResponse):
            # At its end a call with another status than OK raises.
            raise self._unusable("it ends without an answer")
        call.cancel()
        return answer

    def _failure(self, error: grpc.aio.AioRpcError) -> Exception:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return NoReflection(
                f"{self._address} serves no reflection (an app of onelane does by `reflection = true`, and by default "
                "where it listens on a loopback address)"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Transient(f"{self._address} has not answered within {REFLECTION_S:g} s")
        if code is grpc.StatusCode.UNAVAILABLE:
            return Transient(f"{self._address} cannot be asked: {details}{self._hint}")
        return Transient(f"{self._address} does not describe its services: {code.name}: {details}")

    def _unusable(self, reason: str) -> NoReflection:
        return NoReflection(f"the reflection of {self._address} cannot be used: {reason}")
