"""Calls between the shards of one app: to the owner of a key, or to every shard.

Siblings are reached over their Unix sockets, on other machines over links; a call to this very shard goes to its lane
without one. All carry what is left of the deadline, the trace, the baggage and the chain, as calls to other apps do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from onelane.client.call import DEADLINE_DETAILS
from onelane.client.channel import NativeChannel
from onelane.client.propagation import outgoing
from onelane.client.retired_channels import RetiredChannels
from onelane.core import keys
from onelane.core.call_ids import IDEMPOTENCY_KEY
from onelane.core.context import current_baggage, current_call, current_trace
from onelane.core.hop import SERVED
from onelane.core.identity import ASSERTION
from onelane.core.keys import ANY, FieldKey, RoutingKey
from onelane.core.placement import Member
from onelane.errors import BadKey, BadService, Misuse
from onelane.lane.forwarder import SIBLING_DIALLING, Reach
from onelane.lane.lane import Lane
from onelane.server import methods, unix_sockets
from onelane.server.call import OK, Call, Metadata
from onelane.server.methods import Method
from onelane.shard.assertions import Assertions
from onelane.telemetry.tracer import Tracer, context_of

Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep")
MethodRef = str | Callable[[Any, Req, Any], Rep | Awaitable[Rep]]
"""A method of this app: `LobbyServicer.Join`, or its name `arena.v1.Lobby/Join`."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Rep]):
    """The reply of one shard to a `call_each`, or its error."""

    shard: str
    reply: Rep | None
    """None where the call failed."""
    error: grpc.aio.AioRpcError | None


class LocalCall(Call):
    """A call from a shard to itself: without a socket, else like any call."""

    __slots__ = ("_deadline_at", "task")

    def __init__(self, method: str, metadata: Metadata, timeout_s: float | None) -> None:
        super().__init__(method, metadata, trusted=True)
        self.task: asyncio.Task[bytes] | None = None
        self._deadline_at = None if timeout_s is None else monotonic() + timeout_s

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def peer(self) -> str:
        return "lane"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    async def send_initial(self, metadata: Metadata) -> None:
        """The caller sees the reply and the status alone."""

    def send_initial_now(self, metadata: Metadata) -> None:
        """See `send_initial`."""


class SiblingChannels:
    """One channel to each sibling, made at its first use. Owned by one lane."""

    def __init__(self, reach_remote: Reach | None = None) -> None:
        """reach_remote: None where all siblings are on this machine."""
        self._reach_remote = reach_remote
        self._channels: dict[str, NativeChannel] = {}
        self._retired = RetiredChannels()

    def to(self, member: Member) -> NativeChannel:
        channel = self._channels.get(member.socket)
        if channel is None:
            target, dialling = f"unix:{member.socket}", SIBLING_DIALLING
            if member.is_remote and self._reach_remote is not None:
                target, dialling = self._reach_remote(member)
            channel = self._channels[member.socket] = NativeChannel(target, dialling)
        return channel

    async def is_listening(self, member: Member) -> bool:
        """Whether a process listens for its siblings there, also one that accepts nothing now."""
        if not member.is_remote:
            return unix_sockets.is_listening(member.socket)
        # Only with a cluster.
        from onelane.lane import machine_link_dialling

        return await machine_link_dialling.is_listening(member)

    def give_up(self, member: Member) -> None:
        """End the calls to a shard with UNAVAILABLE, and its connection: its lane does not tick."""
        if (channel := self._channels.pop(member.socket, None)) is not None:
            channel.subchannel.give_up(f"shard {member.name} does not answer: its lane does not tick")

    def keep(self, sockets: Collection[str]) -> None:
        """The siblings of now are at these sockets: have the channels to others end with their calls."""
        for socket in self._channels.keys() - sockets:
            self._retired.add(self._channels.pop(socket))

    async def aclose(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self._retired.aclose()


class SiblingCalls:
    """Calls of one shard to the shards of its app, itself among them. Owned by its lane."""

    def __init__(
        self, lane: Lane, channels: SiblingChannels, *, tracer: Tracer, deadline_s: float, assertions: Assertions
    ) -> None:
        """deadline_s: of calls without a timeout."""
        self._assertions = assertions
        self._assert_identity = assertions.writer(assertions.app)
        self._lane = lane
        self._channels = channels
        self._tracer = tracer
        self._deadline_s = deadline_s
        self.to_self: set[LocalCall] = set()
        """Calls to this very shard that are under way."""

    async def call(
        self, key: RoutingKey, method_ref: MethodRef[Req, Rep], request: Req, timeout_s: float | None
    ) -> Rep:
        """See `Shard.call`."""
        method = self._unary(method_ref)
        text = _checked_key(self._lane.router.named_key(key, f"the key for {method.name}"), method, request)
        owner = self._lane.placement.owner_of(text)
        reply: Rep = await self._send(owner, method, request, ((keys.HEADER, text),), self._deadline_at(timeout_s))
        return reply

    async def call_each(
        self, method_ref: MethodRef[Req, Rep], request: Req, timeout_s: float | None
    ) -> list[Answer[Rep]]:
        """See `Shard.call_each`."""
        method = self._unary(method_ref)
        if method.rule is not ANY:
            raise BadService(f"call_each: {method.name} has a key, so one shard owns it; expected a method that is ANY")
        _check_message(method, request)
        deadline_at = self._deadline_at(timeout_s)

        async def ask(member: Member) -> Answer[Rep]:
            try:
                return Answer(member.name, await self._send(member, method, request, (), deadline_at), None)
            except grpc.aio.AioRpcError as error:
                return Answer(member.name, None, error)

        return list(await asyncio.gather(*(ask(member) for member in self._lane.placement.members)))

    async def call_member(self, member: Member, name: str, request: Message, metadata: Metadata = ()) -> Any:
        """Call a method in one shard, which may be this one. name: `pkg.Service/Method`.

        Raises:
            AioRpcError: as of any call.
            BadService: no service of this app has the method, or it streams.
        """
        return await self._send(member, self._unary(name), request, metadata, self._deadline_at(None))

    def described(self, key: RoutingKey, method_ref: MethodRef[Req, Rep], request: Req) -> tuple[str, Method]:
        """The key, in canonical text, and the method of a call that is to be made later.

        Raises:
            BadService, Misuse: see `call`.
        """
        method = self._unary(method_ref)
        if method.rule is ANY:
            raise BadService(f"{method.name} has no key; expected a method whose calls belong to a key")
        return _checked_key(self._lane.router.named_key(key, f"the key for {method.name}"), method, request), method

    def request_of(self, name: str, request: bytes) -> Message:
        """A message for a method, parsed. name: `pkg.Service/Method`.

        Raises:
            BadService: no service of this app has the method, or it streams.
            DecodeError: it is none.
        """
        descriptor = _described(self._unary(name)).input_type
        message: Message = message_factory.GetMessageClass(descriptor).FromString(request)
        return message

    def _unary(self, method_ref: Any) -> Method:
        method = self._find(method_ref)
        if method.request_streaming or method.response_streaming:
            raise BadService(f"{method.name} is a streaming method; expected one message and one answer")
        return method

    def _find(self, method_ref: Any) -> Method:
        if isinstance(method_ref, str):
            entry = self._lane.entries.get(f"/{method_ref.removeprefix('/')}")
            if entry is not None:
                return entry.method
        else:
            for entry in self._lane.entries.values():
                if methods.is_of(entry.method, method_ref):
                    return entry.method
        raise BadService(f"no service of this app has the method {method_ref!r}")

    def _deadline_at(self, timeout_s: float | None) -> float:
        """When a call with this timeout ends; at once where it is infinite or no number, as on a channel."""
        seconds = self._deadline_s if timeout_s is None else timeout_s
        return monotonic() + (seconds if seconds < inf else 0.0)

    async def _send(
        self, member: Member, method: Method, request: Message, metadata: Metadata, deadline_at: float
    ) -> Any:
        gate = self._lane.kept
        if gate is not None and self._lane.entries[method.path].takes_ids:
            # Before the first await: ids are given in the order in which calls are made.
            call_id = gate.nested_id("", method.name)
            metadata = metadata if call_id is None else (*metadata, (IDEMPOTENCY_KEY, call_id))
        span = self._tracer.start(method.name, "CLIENT", current_trace())
        metadata, timeout_s = outgoing(
            metadata,
            max(0.0, deadline_at - monotonic()),
            context=current_call(),
            trace=context_of(span),
            baggage=current_baggage(),
            now=monotonic,
        )
        if gate is not None and (wait := gate.before_sending()) is not None:
            await wait()
        send = self._send_to_self if self._lane.router.is_own(member) else self._send_to_sibling
        status = "CANCELLED"
        try:
            self._check_serves(member)
            reply = await send(member, method, request.SerializeToString(), metadata, timeout_s)
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise
        finally:
            self._tracer.end_call(span, status=status, server=False)
        return _reply_class(method).FromString(reply)

    def _check_serves(self, member: Member) -> None:
        """Refuse to call a sibling that serves no calls now, as a client's call is refused: it would wait for ever.

        Raises:
            AioRpcError: so it is.
        """
        why = self._lane.router.away.get(member.name)
        if why is not None and not self._lane.router.is_own(member):
            details = f"shard {member.name} is {why}"
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details)

    async def _send_to_sibling(
        self, member: Member, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> bytes:
        send = self._channels.to(member).unary_unary(method.path)
        if self._assert_identity is not None:
            metadata = (*metadata, (ASSERTION, self._assert_identity()))
        reply: bytes = await send(request, metadata=metadata, timeout=timeout_s)
        return reply

    async def _send_to_self(
        self, member: Member, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> bytes:
        if timeout_s is not None and timeout_s <= 0:
            raise _late()
        call = LocalCall(method.path, metadata, timeout_s)
        if (identity := self._assertions.identity_within_app()) is not None:
            call.prove(identity)
        # A task of its own, so that the handler sets nothing in the caller's context.
        serving = asyncio.get_running_loop().create_task(self._lane.serve(method, call, request))
        call.task = serving
        self.to_self.add(call)
        try:
            async with asyncio.timeout(call.time_remaining()):
                await serving
        except TimeoutError:
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS)
        finally:
            self.to_self.discard(call)
        if call.code_now is not OK:
            trailers = grpc.aio.Metadata(*(pair for pair in call.trailers if pair[0] != SERVED))
            raise grpc.aio.AioRpcError(call.code_now, grpc.aio.Metadata(), trailers, call.details_now)
        return call.reply


def _checked_key(text: str, method: Method, request: Message) -> str:
    """A key (canonical text) with which a service calls a method.

    Raises:
        Misuse: the owner would refuse the call, for which the client of the service could do nothing.
    """
    _check_message(method, request)
    if not text:
        raise Misuse(f"call: the key for {method.name} is empty")
    if isinstance(method.rule, FieldKey):
        try:
            keys.check_header(method.rule.read(request), text, method.rule.paths[0])
        except BadKey as error:
            raise Misuse(f"call: the key for {method.name} is {text!r}: {error}") from error
    return text


def _check_message(method: Method, request: Message) -> None:
    """Check that a request is the message that a method takes.

    Raises:
        Misuse: it is another one, or none.
    """
    expected = _described(method).input_type.full_name
    descriptor = getattr(request, "DESCRIPTOR", None)
    if descriptor is None or descriptor.full_name != expected:
        raise Misuse(f"{method.name} takes a message {expected}, not {type(request).__name__}")


def _reply_class(method: Method) -> Any:
    return message_factory.GetMessageClass(_described(method).output_type)


def _described(method: Method) -> MethodDescriptor:
    descriptor = keys.describe(method.path)
    if descriptor is None:
        raise BadService(f"{method.name}: its proto has not been imported")
    return descriptor


def _late() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata(), DEADLINE_DETAILS
    )
