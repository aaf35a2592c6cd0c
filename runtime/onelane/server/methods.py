"""The methods of a servicer, found through grpcio's own generated registration.

Promises: every servicer that `add_…Servicer_to_server` takes is taken here, unchanged. A service whose methods have
neither a key nor `ANY` is refused with all of them listed.
"""

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor

from onelane import plugins
from onelane.core.keys import MAX_KEY_BYTES, KeyRule, configured_for, describe, rule_for
from onelane.errors import BadService, caused
from onelane.v1 import options_pb2

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Method:
    """One method, ready to be called."""

    path: str
    """`/pkg.Service/Method`."""
    handler: Callable[[Any, Any], Any]
    is_async: bool
    """The handler is an `async def` (a coroutine or an async generator), not a plain `def`."""
    request_streaming: bool
    response_streaming: bool
    deserialize: Callable[[bytes], Any] | None
    serialize: Callable[[Any], bytes] | None
    rule: KeyRule
    is_free: bool = False
    """Its calls take no turn of their key."""
    reply_type: type | None = None
    """The class of its answers, where `serialize` is that class's own: gRPC's would also write a message of another
    class, which the client then misreads."""
    choose: Callable[[Any], Awaitable["Method"]] | None = None
    """Where interceptors are configured: the method as they want it for one call."""

    name: str = field(init=False, default="")
    """`pkg.Service/Method`, as telemetry and configuration write it."""

    is_immediate: bool = field(init=False, default=False)
    """It runs in one go: a plain `def` of one message and one answer."""

    has_stream: bool = field(init=False, default=False)
    """Of requests, of answers, or of both."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path[1:])
        object.__setattr__(self, "has_stream", self.request_streaming or self.response_streaming)
        waits = self.is_async or self.has_stream or self.choose is not None
        object.__setattr__(self, "is_immediate", not waits)


class CallDetails(grpc.HandlerCallDetails):
    """A call as interceptors and generic handlers see it."""

    def __init__(self, method: str, metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = metadata


class _Registry:
    """Stands where generated code expects a server, and collects the handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.generic: list[Any] = []

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.generic += handlers


def servicer_class(plug: str) -> type:
    """The class that `package.module:Class` names.

    Raises:
        BadService: it cannot be imported, or is no servicer.
        ServiceRaised: its module has raised.
    """
    module_name, _, name = plug.partition(":")
    module = plugins.import_plug(plug)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        near = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module_name]
        raise BadService(f"{plug}: {module_name} has no class {name!r}; it has {near}")
    if not _registrations(cls):
        raise BadService(f"{plug}: derives from no generated …Servicer, so it serves nothing")
    return cls


def _registrations(cls: type) -> list[Callable[[Any, Any], None]]:
    """grpcio's `add_XServicer_to_server` of each generated class that `cls` derives from."""
    generated = filter(is_generated, cls.__mro__)
    return [getattr(sys.modules[base.__module__], f"add_{base.__name__}_to_server") for base in generated]


def is_generated(cls: type) -> bool:
    """Whether it is a …Servicer that protoc has generated."""
    return f"add_{cls.__name__}_to_server" in vars(sys.modules.get(cls.__module__, object))


def make(cls: type, shard: object) -> object:
    """One service object: `cls(shard)`, or `cls()` for one that asks for nothing.

    Raises:
        BadService: it asks for more.
        ServiceRaised: its constructor has raised.
    """
    try:
        signature = inspect.signature(cls)
    except ValueError:
        signature = inspect.Signature()
    arguments = (shard,) if signature.parameters else ()
    try:
        signature.bind(*arguments)
    except TypeError as error:
        bad = BadService(f"its constructor takes {signature}, expected (shard) or no argument: {error}")
        raise caused(bad, error) from error
    try:
        return cls(*arguments)
    except BadService:
        raise
    except (Exception, SystemExit) as error:
        raise plugins.raised("", error) from error


def methods_of(
    servicer: object,
    *,
    configured: Mapping[str, str],
    turns: Mapping[str, str] = NOTHING,
    add: Callable[[Any, Any], None] | None = None,
    max_key_bytes: int = MAX_KEY_BYTES,
) -> list[Method]:
    """All methods of one servicer, with their key rules.

    configured: "pkg.Service/Method" or "pkg.Service/*" → rule, for protos that do not state it.
    turns: the same → "KEYED" or "FREE".

    Raises:
        BadService: methods with neither a key nor ANY, all listed; or a rule that cannot be.
    """
    registry = _Registry()
    for register in [add] if add else _registrations(type(servicer)):
        register(servicer, registry)
    handlers = registry.handlers or _from_generic(registry.generic)
    faults: list[str] = []
    methods = [
        _method(path, handler, configured, turns, max_key_bytes, faults) for path, handler in sorted(handlers.items())
    ]
    if faults:
        raise BadService("\n".join(faults))
    return [method for method in methods if method is not None]


def _from_generic(generic: Iterable[Any]) -> dict[str, Any]:
    # Code generated before grpcio 1.64 registers only generic handlers; the pool knows their methods' names.
    handlers: dict[str, Any] = {}
    for handler in generic:
        service = descriptor_pool.Default().FindServiceByName(handler.service_name())
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            if (method_handler := handler.service(CallDetails(path, ()))) is not None:
                handlers[path] = method_handler
    return handlers


def _method(
    path: str,
    handler: Any,
    configured: Mapping[str, str],
    turns: Mapping[str, str],
    max_key_bytes: int,
    faults: list[str],
) -> Method | None:
    descriptor = describe(path)
    try:
        rule = rule_for(path, descriptor, configured, max_key_bytes)
    except BadService as error:
        text = configured_for(path, configured)
        place = path[1:] if text is None else f"{path[1:]}: its key {text!r} in the table keys"
        faults.append(f"{place}: {error}")
        return None
    if rule is None:
        faults.append(
            f"{path[1:]}: has no key; annotate a field of its request with [(onelane.v1.key) = true], the method with "
            f'option (onelane.v1.route) = ANY, or configure keys."{path[1:]}"'
        )
        return None
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return Method(
        path=path,
        handler=behaviour,
        is_async=is_async(behaviour),
        request_streaming=bool(handler.request_streaming),
        response_streaming=bool(handler.response_streaming),
        deserialize=handler.request_deserializer,
        serialize=handler.response_serializer,
        rule=rule,
        is_free=_is_free(path, descriptor, turns),
        reply_type=_reply_type(descriptor, handler.response_serializer),
    )


def is_async(function: Any) -> bool:
    """Whether a handler is an `async def`."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _reply_type(descriptor: MethodDescriptor | None, serialize: Any) -> type | None:
    if descriptor is None:
        return None
    reply_type = message_factory.GetMessageClass(descriptor.output_type)
    return reply_type if serialize == reply_type.SerializeToString else None


def _is_free(path: str, descriptor: MethodDescriptor | None, configured: Mapping[str, str]) -> bool:
    """Whether calls of a method take no turns: configuration, else its proto."""
    text = configured_for(path, configured)
    if text is not None:
        return text == "FREE"
    return descriptor is not None and descriptor.GetOptions().Extensions[options_pb2.turns] == options_pb2.FREE


def is_of(method: Method, function: Any) -> bool:
    """Whether `function` is that method, as the generated servicer or the service's own class names it."""
    servicer = getattr(method.handler, "__self__", None)
    name = getattr(function, "__name__", "")
    return method.path.endswith(f"/{name}") and any(vars(cls).get(name) is function for cls in type(servicer).__mro__)
