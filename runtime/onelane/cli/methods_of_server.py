"""The methods of a server, as its descriptors have them: how they are called, named and keyed."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, MethodDescriptor, ServiceDescriptor

from onelane.cli.reflection import Reflection
from onelane.core.keys import AnyShard, FieldKey, proto_rule
from onelane.errors import BadService, Invalid, NotThere

KINDS = {
    (False, False): "unary",
    (False, True): "server-streaming",
    (True, False): "client-streaming",
    (True, True): "bidi-streaming",
}
"""Whether a request, and a response, is a stream → what gRPC calls it."""
_OF_RUNTIMES = ("grpc.", "onelane.v1.")
"""Of services for programs: health, reflection, topology."""


@dataclass(frozen=True, slots=True)
class MethodLine:
    """One method, as `onelane ls` prints it."""

    name: str
    """`pkg.Service/Method`."""
    kind: str
    """See `KINDS`."""
    request: str
    response: str
    key: str
    """The fields of the key, or ANY; empty where the proto says nothing of one."""


def line_of(method: MethodDescriptor) -> MethodLine:
    """How a method is listed."""
    kind = KINDS[method.client_streaming, method.server_streaming]
    request, response = method.input_type.full_name, method.output_type.full_name
    return MethodLine(path_of(method)[1:], kind, request, response, ",".join(key_paths(method)) or _route_of(method))


def path_of(method: MethodDescriptor) -> str:
    """`/pkg.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def key_paths(method: MethodDescriptor) -> tuple[str, ...]:
    """The fields that are the key of a method, by the options of its proto."""
    rule = _rule_of(method)
    return rule.paths if isinstance(rule, FieldKey) else ()


def _route_of(method: MethodDescriptor) -> str:
    return "ANY" if isinstance(_rule_of(method), AnyShard) else ""


def _rule_of(method: MethodDescriptor) -> Any:
    try:
        return proto_rule(method)
    except BadService:
        # Options that no app of onelane would start with.
        return None


async def listed(reflection: Reflection, service: str | None, *, is_all: bool) -> list[MethodDescriptor]:
    """The methods of a service, by its full name or the end of it; of all services. is_all: also those for programs.

    Raises:
        NotThere, NoReflection, Transient: see `Reflection`.
    """
    names = await reflection.services()
    if service is not None:
        names = [_named(service, names)]
    elif not is_all:
        names = [name for name in names if not name.startswith(_OF_RUNTIMES)]
    methods: list[MethodDescriptor] = []
    for name in names:
        methods += (await _service(reflection, name)).methods
    return methods


async def method_named(reflection: Reflection, text: str) -> MethodDescriptor:
    """The method `pkg.Service/Method`, `pkg.Service.Method`, or an end of these that names one alone.

    Raises:
        NotThere: there is none; or several.
    """
    names = await reflection.services()
    service, _, method = text.strip("/").replace("/", ".").rpartition(".")
    candidates = [_named(service, names)] if service else [n for n in names if not n.startswith(_OF_RUNTIMES)]
    services = [await _service(reflection, name) for name in candidates]
    matches = [owner.methods_by_name[method] for owner in services if method in owner.methods_by_name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotThere(f"several services have a method {method!r}: {_listing(path_of(m)[1:] for m in matches)}")
    known = [path_of(other)[1:] for owner in services for other in owner.methods]
    near = get_close_matches(method, [name.rpartition("/")[2] for name in known], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {_listing(known)}"
    raise NotThere(f"{candidates[0] if service else 'the server'} has no method {method!r}{hint}")


async def symbol_named(
    reflection: Reflection, text: str
) -> ServiceDescriptor | MethodDescriptor | Descriptor | EnumDescriptor:
    """The service, method, message or enum of this name.

    Raises:
        NotThere: there is none.
    """
    if "/" in text:
        return await method_named(reflection, text)
    names = await reflection.services()
    if len(near := _ending(text, names)) == 1:
        return await _service(reflection, near[0])
    await reflection.load(text)
    pool: Any = reflection.pool
    for find in (pool.FindMessageTypeByName, pool.FindEnumTypeByName, pool.FindMethodByName, pool.FindServiceByName):
        try:
            return find(text)  # type: ignore[no-any-return]
        except KeyError:
            continue
    raise NotThere(f"{text!r} is no service, method, message or enum")


async def _service(reflection: Reflection, name: str) -> ServiceDescriptor:
    await reflection.load(name)
    try:
        descriptor: ServiceDescriptor = reflection.pool.FindServiceByName(name)
    except KeyError as error:
        raise Invalid(f"the server lists {name!r}, and describes no such service") from error
    return descriptor


def _named(text: str, names: list[str]) -> str:
    """The one of these names that ends in `text`."""
    matches = _ending(text, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotThere(f"several services are called {text!r}: {_listing(matches)}")
    near = get_close_matches(text, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {_listing(names)}"
    raise NotThere(f"the server has no service {text!r}{hint}")


def _ending(text: str, names: list[str]) -> list[str]:
    return [name for name in names if name == text] or [name for name in names if name.endswith(f".{text}")]


def _listing(names: Any) -> str:
    return ", ".join(names) or "none"
